"""Interrupted trainings of a trainer with gates: resumed equals uninterrupted."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import (
    DataCollatorWithPadding,
    EarlyStoppingCallback,
    LlamaConfig,
    LlamaForSequenceClassification,
    TrainerCallback,
)

import gating
from gating.errors import DamageError, InputError, MissingFileError, OperationError
from gating.integrations import GatedTrainer
from gating.structure.layers import count_units
from tests.integrations.conftest import examples, make_classifier, make_trainer, weights_of
from tests.support.tiers import first_of


class StopAt(TrainerCallback):
    """Ends a training as an interruption does, without any state of its own."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


def compact(folder, *, stop_at=None, resume=None, **options):
    callbacks = [StopAt(stop_at)] if stop_at else []
    trainer = make_trainer(folder / "checkpoints", callbacks=callbacks, **options)
    trainer.train_and_compact(folder / "compact", resume_from_checkpoint=resume)
    return trainer


OPTIONS = {
    "exact": {},
    "lagrangian": {"objective": lambda: gating.Lagrangian(num_heads=5)},
    "convergence": {"convergence": lambda: gating.Convergence(patience=1, max_undecided=1.0)},
    "accumulation": {"args": {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4}},
    "bf16": {"args": {"bf16": True}},
    "checkpointing": {"args": {"activation_checkpointing": True}},
    # The largest loss is that of the weights right after the removal.
    "best": {
        "args": {"eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True, "greater_is_better": True}
    },
}


def fresh(name):
    return {key: value() if callable(value) else value for key, value in OPTIONS[name].items()}


# After a checkpoint of the search, at the end of the search, and after a checkpoint of the recovery.
@pytest.mark.parametrize(
    ("name", "stop_at"),
    [
        ("exact", 15),
        *(
            pytest.param(*case, marks=pytest.mark.runs)
            for case in (
                ("exact", 7),
                ("exact", 13),
                ("lagrangian", 7),
                ("convergence", 7),
                ("accumulation", 15),
                ("bf16", 15),
                ("checkpointing", 15),
                ("best", 13),
                ("best", 15),
            )
        ),
    ],
)
def test_a_resumed_training_equals_an_uninterrupted_one(tmp_path, assert_same, name, stop_at):
    save = {"save_steps": 2}
    options = [fresh(name) for _ in range(3)]
    options = [{**one, "args": {**one.get("args", {}), **save}} for one in options]
    whole = compact(tmp_path / "whole", **options[0])
    with pytest.raises(KeyboardInterrupt):
        compact(tmp_path / "parts", stop_at=stop_at, **options[1])
    resumed = compact(tmp_path / "parts", resume=True, **options[2])
    assert_same(weights_of(whole), weights_of(resumed))
    assert whole.state.global_step == resumed.state.global_step == 16
    losses = [[row["loss"] for row in one.state.log_history if "loss" in row] for one in (whole, resumed)]
    assert losses[0] == losses[1]


def timed(keep, neurons):
    """Return an objective as ``budget_for_speedup`` does, whose numbers differ a little each time."""
    objective = gating.ExactBudget()
    objective.take_measured({"keep": keep, "cost": {"heads": 1.0, "neurons": neurons}})
    return objective


@pytest.mark.parametrize("stop_at", first_of([7, 13, 15]))
def test_a_measured_budget_is_that_of_the_checkpoint(tmp_path, assert_same, stop_at):
    both = {"gate_options": {"units": ["heads", "neurons"], "group_size": 8}, "args": {"save_steps": 2}}
    whole = compact(tmp_path / "whole", objective=timed(0.44788, 0.71), **both)
    with pytest.raises(KeyboardInterrupt):
        compact(tmp_path / "parts", stop_at=stop_at, objective=timed(0.44788, 0.71), **both)
    with pytest.raises(KeyboardInterrupt):
        compact(tmp_path / "parts", stop_at=stop_at + 1, resume=True, objective=timed(0.74981, 0.9), **both)
    resumed = compact(tmp_path / "parts", resume=True, objective=timed(0.64981, 1.0), **both)
    assert_same(weights_of(whole), weights_of(resumed))
    # As the call that was printed, too.
    call = gating.ExactBudget(keep=0.44788, cost={"heads": 1.0, "neurons": 0.71})
    compact(tmp_path / "parts" / "again", resume=_last(tmp_path / "parts"), objective=call, **both)
    with pytest.raises(InputError, match=r"objective\.keep=0\.44788, and this one has objective\.keep=0\.5"):
        compact(tmp_path, resume=_last(tmp_path / "parts"), objective=gating.ExactBudget(keep=0.5), **both)


def _last(folder):
    return str(max((folder / "checkpoints").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1])))


class WithoutLayer(GatedTrainer):
    """A trainer whose gates are nearly closed in one layer at the start."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        with torch.no_grad():
            parts = self.gates.log_alpha.split(self.gates.block_sizes)
            for block, values in zip(self.gates.blocks(), parts, strict=True):
                if block.layer_idx == 1:
                    values.fill_(-4.0)


@pytest.mark.runs
def test_a_recovery_without_a_layer_resumes(tmp_path, assert_same):
    def options():
        torch.manual_seed(0)
        sizes = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 45}
        return {
            "cls": WithoutLayer,
            "model": LlamaForSequenceClassification(LlamaConfig(num_hidden_layers=3, pad_token_id=0, **sizes)),
            "gate_options": {"units": ["heads", "neurons"], "group_size": 16},
            "objective": gating.ExactBudget(num_heads=8, num_neurons=128),
            "args": {"save_steps": 2},
        }

    whole = compact(tmp_path / "whole", **options())
    assert whole.model.config.num_hidden_layers == 2
    with pytest.raises(KeyboardInterrupt):
        compact(tmp_path / "parts", stop_at=15, **options())
    resumed = compact(tmp_path / "parts", resume=True, **options())
    assert_same(weights_of(whole), weights_of(resumed))
    assert whole.model.config.to_dict() == resumed.model.config.to_dict()
    # Two whole layers are a model of plain transformers.
    plain = LlamaForSequenceClassification.from_pretrained(tmp_path / "parts" / "compact")
    assert_same(weights_of(resumed), plain.state_dict())


def test_a_training_that_was_stopped_in_the_search_removes_nothing(tmp_path):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 6

    trainer = make_trainer(tmp_path / "checkpoints", callbacks=[Stop()])
    with pytest.raises(OperationError, match="6 of 12 steps are done"):
        trainer.train_and_compact(tmp_path / "compact")
    assert trainer.gates.num_heads == 12


class StopSoftly(TrainerCallback):
    """Asks the trainer to end, as callbacks with a limit of time or of cost do."""

    def __init__(self, step, event="on_step_end"):
        self.step = step
        setattr(self, event, self.stop)

    def stop(self, args, state, control, **kwargs):
        control.should_training_stop = control.should_training_stop or state.global_step >= self.step
        return control


@pytest.mark.runs
@pytest.mark.parametrize(("step", "event"), [(13, "on_step_end"), (14, "on_log"), (15, "on_save")])
def test_a_training_that_was_stopped_in_the_recovery_saves_nothing_and_resumes(tmp_path, assert_same, step, event):
    save = {"save_steps": 1, "logging_steps": 1}
    whole = compact(tmp_path / "whole", args=save)
    trainer = make_trainer(tmp_path / "parts" / "checkpoints", args=save)
    stop = StopSoftly(step, event)
    trainer.add_callback(stop)
    with pytest.raises(OperationError, match=f"The recovery was stopped after {step} of 16 steps") as error:
        trainer.train_and_compact(tmp_path / "parts" / "compact")
    assert "resume_from_checkpoint=True" in str(error.value)
    assert not (tmp_path / "parts" / "compact").exists()
    with pytest.warns(UserWarning, match=f"stopped after {step} of 16 steps: the model is saved as it is"):
        trainer.save_compact(tmp_path / "as it is")
    # Either in the same process or in another one.
    trainer.remove_callback(stop)
    for resumed in (trainer, make_trainer(tmp_path / "parts" / "checkpoints", args=save)):
        place = tmp_path / "parts" / "compact"
        resumed.train_and_compact(place, resume_from_checkpoint=True, overwrite=True)
        assert resumed.state.global_step == 16
        assert_same(weights_of(whole), weights_of(resumed))


@pytest.mark.runs
def test_a_checkpoint_of_the_search_is_not_for_a_model_without_its_heads(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.train()
    trainer.finalize()
    with pytest.raises(OperationError, match="make the trainer again to resume from it"):
        trainer.train(resume_from_checkpoint=True)
    trainer.train()


@pytest.mark.runs
def test_a_checkpoint_of_the_recovery_is_for_the_model_of_the_search(tmp_path):
    compact(tmp_path)
    other = make_classifier()
    gating.prune_heads(other, {0: [1, 2, 3]})
    trainer = make_trainer(tmp_path / "checkpoints", model=other, objective=gating.ExactBudget(num_heads=5))
    with pytest.raises(InputError):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoints" / "checkpoint-16"))


@pytest.mark.runs
def test_a_damaged_state_of_the_gates_is_named(tmp_path):
    compact(tmp_path)
    checkpoint = tmp_path / "checkpoints" / "checkpoint-8"
    (checkpoint / "gates.pt").write_bytes(b"damage")
    with pytest.raises(DamageError, match=r"checkpoint-8/gates\.pt is damaged"):
        make_trainer(tmp_path / "checkpoints").train(resume_from_checkpoint=str(checkpoint))
    (checkpoint / "gates.pt").unlink()
    with pytest.raises(MissingFileError, match=r"no gates\.pt"):
        make_trainer(tmp_path / "checkpoints").train(resume_from_checkpoint=str(checkpoint))


@pytest.mark.runs
def test_a_finished_training_resumes_to_the_same_model(tmp_path, assert_same):
    trainer = compact(tmp_path)
    again = make_trainer(tmp_path / "checkpoints")
    again.train_and_compact(tmp_path / "again", resume_from_checkpoint=True)
    assert count_units(again.model, "heads") == 5
    assert_same(weights_of(trainer), weights_of(again))


def weighted(factor):
    """Return a loss function of a user that has a number of its own."""
    return lambda outputs, labels, num_items_in_batch=None: factor * outputs.loss


class OwnChoice(gating.ExactBudget):
    """An objective of a user with settings of its own."""

    def __init__(self, *, strength=1.0, prior=(0.0,), factor=1.0, **budget):
        super().__init__(**budget)
        self.strength, self.prior, self.rule = strength, torch.tensor(prior), weighted(factor)


def changed_model(*, frozen="", dropout=None, **config):
    model = make_classifier(config=config)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not (frozen and name.startswith(frozen)))
    if dropout is not None:
        model.dropout.p = dropout
    return {"model": model}


DECIDING = {
    "activation": (lambda: changed_model(hidden_act="relu"), "model.config.hidden_act=gelu", "=relu"),
    "precision of norms": (lambda: changed_model(layer_norm_eps=1e-2), "model.config.layer_norm_eps=1e-12", "=0.01"),
    "labels": (lambda: changed_model(id2label={0: "b", 1: "a"}), "model.config.id2label.0=LABEL_0", "=b"),
    "dropout": (lambda: changed_model(dropout=0.5), "model.dropout.dropout=0.1", "=0.5"),
    "frozen": (
        lambda: changed_model(frozen="bert.embeddings.word"),
        "model.is_trained.bert.embeddings.word_embeddings.weight=True",
        "=False",
    ),
    "optimizer": (
        {"optimizer_cls_and_kwargs": (torch.optim.SGD, {"lr": 1e-3})},
        "optimizer_cls_and_kwargs=None",
        "['SGD', {'lr': 0.001}]",
    ),
    "collator": ({"data_collator": DataCollatorWithPadding(None)}, "data_collator", "DataCollatorWithPadding"),
    "loss": ({"compute_loss_func": weighted(2.0)}, "compute_loss_func", ""),
    "early stopping": (lambda: {"callbacks": [EarlyStoppingCallback(2)]}, "early_stopping=[]", "=[[2, 0.0]]"),
    "objective.num_heads": ({"objective": gating.ExactBudget(num_heads=4)}, "num_heads=5", "num_heads=4"),
    "objective": ({"objective": gating.TopK(num_heads=5)}, "objective._target_=ExactBudget", "=TopK"),
    "least": ({"objective": gating.ExactBudget(num_heads=5, min_per_layer=1)}, "min_per_layer=0", "min_per_layer=1"),
    "schedule": (
        {"objective": gating.ExactBudget(num_heads=5, schedule=gating.BudgetSchedule(end=0.5))},
        "objective.schedule.end=0.67",
        "objective.schedule.end=0.5",
    ),
    "temperature": ({"gate_options": {"temperature": 0.5}}, "gates.temperature=0.66", "gates.temperature=0.5"),
    "stretch": ({"gate_options": {"stretch_limits": (-0.2, 1.2)}}, "gates.stretch_limits=", "[-0.2, 1.2]"),
    "start": ({"gate_options": {"init_prob_open": 0.9}}, "gates.init_prob_open=0.98", "=0.9"),
    "units": ({"gate_options": {"units": ["heads", "neurons"]}}, "gates.units=['heads']", "['heads', 'neurons']"),
    "excluded": (
        {"gate_options": {"exclude": ["encoder.layer.0.attention.self"]}},
        "gates.blocks.encoder.layer.0.attention.self=4",
        "=None",
    ),
    "recovery": ({"recovery": 0.5}, "recovery=0.25", "recovery=0.5"),
    "gate_lr": ({"gate_lr": 0.2}, "gate_lr=0.1", "gate_lr=0.2"),
    "multiplier_lr": ({"multiplier_lr": 0.2}, "multiplier_lr=0.1", "multiplier_lr=0.2"),
    "convergence": ({"convergence": gating.Convergence()}, "convergence", ""),
    "steps": ({"args": {"max_steps": 20}}, "args.max_steps=16", "args.max_steps=20"),
    "batch": ({"args": {"per_device_train_batch_size": 4}}, "args.per_device_train_batch_size=8", "=4"),
    "accumulation": ({"args": {"gradient_accumulation_steps": 2}}, "args.gradient_accumulation_steps=1", "=2"),
    "seed": ({"args": {"seed": 1}}, "args.seed=42", "args.seed=1"),
    "data seed": ({"args": {"data_seed": 1}}, "args.data_seed=None", "args.data_seed=1"),
    "rate": ({"args": {"learning_rate": 2e-3}}, "args.learning_rate=0.001", "=0.002"),
    "schedule of rates": ({"args": {"lr_scheduler_type": "cosine"}}, "args.lr_scheduler_type=linear", "=cosine"),
    "precision": ({"args": {"bf16": True}}, "args.bf16=False", "args.bf16=True"),
    "data": ({"train_dataset": examples(60, seed=1)}, "train_dataset.num_rows=64", "train_dataset.num_rows=60"),
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Return a folder with checkpoints of a search and of its recovery, and of an objective of a user."""
    folder = tmp_path_factory.mktemp("checkpoints")
    compact(folder)
    make_trainer(folder / "own", objective=OwnChoice(num_heads=5)).train()
    return folder


@pytest.mark.parametrize("step", first_of([8, 16]))
@pytest.mark.parametrize("name", DECIDING)
def test_a_setting_that_decides_the_result_is_compared(checkpoints, name, step):
    changed, before, now = DECIDING[name]
    trainer = make_trainer(checkpoints / "checkpoints", **(changed() if callable(changed) else changed))
    weights = weights_of(trainer)
    with pytest.raises(InputError, match="was written by a trainer with") as error:
        trainer.train(resume_from_checkpoint=str(checkpoints / "checkpoints" / f"checkpoint-{step}"))
    assert before in str(error.value)
    assert now in str(error.value)
    assert "Make the trainer as before, or begin again" in str(error.value)
    assert trainer.state.global_step == 0
    assert all(torch.equal(tensor, weights[name]) for name, tensor in weights_of(trainer).items())


@pytest.mark.parametrize("settings", [{"strength": 2.0}, {"prior": (1.0,)}, {"factor": 2.0}])
def test_settings_of_an_objective_of_a_user_are_compared(checkpoints, settings):
    trainer = make_trainer(checkpoints / "own", objective=OwnChoice(num_heads=5, **settings))
    with pytest.raises(InputError, match=rf"objective\.(rule\.)?{next(iter(settings))}="):
        trainer.train(resume_from_checkpoint=True)


def test_settings_that_decide_nothing_may_differ(checkpoints, tmp_path):
    free = {
        **{"output_dir": str(tmp_path), "logging_steps": 5, "save_steps": 3, "save_total_limit": 1},
        **{"run_name": "other", "log_level": "info", "dataloader_num_workers": 1, "eval_strategy": "steps"},
        **{"eval_steps": 8, "per_device_eval_batch_size": 2, "save_strategy": "steps", "disable_tqdm": True},
    }
    trainer = make_trainer(tmp_path, objective=gating.ExactBudget(num_heads=5), args=free)
    trainer.train(resume_from_checkpoint=str(checkpoints / "checkpoints" / "checkpoint-8"))
    assert trainer.finalize().num_heads == 5


@pytest.mark.filterwarnings("ignore:.*no checksums:UserWarning")
def test_a_checkpoint_of_a_search_is_no_compact_model(tmp_path):
    make_trainer(tmp_path).train()
    with pytest.raises(InputError, match="head_gates"):
        gating.load_compact(tmp_path / "checkpoint-12")


@pytest.mark.runs
def test_other_labels_of_the_same_number_of_examples_are_noticed(tmp_path):
    rows = [{name: value.tolist() for name, value in row.items()} for row in examples(64, seed=1)]
    make_trainer(tmp_path, train_dataset=Dataset.from_list(rows)).train()
    checkpoint = str(sorted((tmp_path).glob("checkpoint-*"))[0])
    trainer = make_trainer(tmp_path, train_dataset=Dataset.from_list([*rows[:-1], {**rows[-1], "labels": 0}]))
    with pytest.raises(InputError, match=r"was written by a trainer with train_dataset\.labels="):
        trainer.train(resume_from_checkpoint=checkpoint)
    assert trainer.state.global_step == 0
    changed = Dataset.from_list(rows).with_transform(lambda batch: {**batch, "labels": [0 for _ in batch["labels"]]})
    with pytest.raises(InputError, match=r"with train_dataset\.transform\._target_=None, and this one"):
        make_trainer(tmp_path, train_dataset=changed).train(resume_from_checkpoint=checkpoint)
    # The same rows from another place.
    make_trainer(tmp_path, train_dataset=Dataset.from_list(rows)).train(resume_from_checkpoint=checkpoint)


@pytest.mark.runs
def test_numbers_of_numpy_are_stored_as_plain_ones(tmp_path):
    """Those of the optimizer are stored by transformers, which does not load them again."""
    settings = {"args": {"warmup_steps": np.int64(2)}, "recovery": np.float64(0.5)}
    make_trainer(tmp_path, **settings).train()
    checkpoint = str(sorted(tmp_path.glob("checkpoint-*"))[0])
    make_trainer(tmp_path, **settings).train(resume_from_checkpoint=checkpoint)
    with pytest.raises(InputError, match=r"args\.warmup_steps=2, and this one has args\.warmup_steps=3"):
        make_trainer(tmp_path, args={"warmup_steps": np.int64(3)}, recovery=0.5).train(
            resume_from_checkpoint=checkpoint
        )


def test_data_of_evaluations_are_compared_where_they_choose_the_model(tmp_path):
    best = {"eval_strategy": "steps", "eval_steps": 4, "load_best_model_at_end": True}
    make_trainer(tmp_path, args=best).train()
    checkpoint = str(tmp_path / "checkpoint-4")
    other = make_trainer(tmp_path, args=best, eval_dataset=examples(12, seed=2))
    with pytest.raises(InputError, match=r"evaluation\.eval_dataset\.num_rows=16"):
        other.train(resume_from_checkpoint=checkpoint)


def test_a_checkpoint_without_an_optimizer_is_refused_and_announced(tmp_path):
    trainer = make_trainer(tmp_path, args={"save_only_model": True})
    with pytest.warns(UserWarning, match="save_only_model=True: this training cannot be resumed"):
        trainer.train()
    resumed = make_trainer(tmp_path)
    with pytest.raises(
        InputError, match=r"checkpoint-4 has no rng_state\.pth, without which the result would be another"
    ):
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert resumed.state.global_step == 0


@pytest.mark.runs
def test_the_checkpoint_of_another_training_in_the_same_folder_is_not_chosen(tmp_path):
    make_trainer(tmp_path).train()
    other = make_trainer(tmp_path, model=make_classifier(3), callbacks=[StopAt(6)])
    with pytest.raises(KeyboardInterrupt):
        other.train()
    resumed = make_trainer(tmp_path, model=make_classifier(3))
    with pytest.raises(InputError, match="checkpoints of several trainings, such as checkpoint-"):
        resumed.train(resume_from_checkpoint=True)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    # It has replaced those of the first.
    make_trainer(tmp_path, model=make_classifier(3)).train(resume_from_checkpoint=True)
