"""Interrupted trainings of a trainer with gates: resumed equals uninterrupted."""

import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForSequenceClassification, TrainerCallback

import gating
from gating.errors import InputError, OperationError
from gating.integrations import GatedTrainer
from gating.structure.layers import count_units
from tests.integrations.conftest import CHECKPOINTING, make_classifier, make_trainer, weights_of
from tests.support.tiers import first_of


class StopAt(TrainerCallback):
    """Ends a training as an interruption does, without any state of its own."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


def compact(folder, *, stop_at=None, stop=None, resume=None, **options):
    stop = StopAt(stop_at) if stop_at else stop
    callbacks = [] if stop is None else [stop]
    trainer = make_trainer(folder / "checkpoints", callbacks=callbacks, **options)
    trainer.train_and_compact(folder / "compact", resume_from_checkpoint=resume)
    return trainer


OPTIONS = {
    "exact": {},
    "lagrangian": {"objective": lambda: gating.Lagrangian(num_heads=5)},
    "convergence": {"convergence": lambda: gating.Convergence(patience=1, max_undecided=1.0)},
    "accumulation": {"args": {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4}},
    "bf16": {"args": {"bf16": True}},
    "checkpointing": {"args": {CHECKPOINTING: True}},
    # The largest loss is that of the weights right after the removal.
    "best": {
        "args": {"eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True, "greater_is_better": True}
    },
}


def fresh(name):
    return {key: value() if callable(value) else value for key, value in OPTIONS[name].items()}


class StopInRecovery(StopAt):
    """Ends the recovery."""

    def on_step_end(self, args, state, control, **kwargs):
        if "recovery" in args.output_dir:
            super().on_step_end(args, state, control, **kwargs)


# After a checkpoint of the search, after one of the recovery, and before its first one.
@pytest.mark.parametrize(
    ("name", "stop"),
    [
        ("exact", StopInRecovery(3)),
        *(
            pytest.param(*case, marks=pytest.mark.runs)
            for case in (
                ("exact", StopAt(7)),
                ("exact", StopInRecovery(1)),
                ("lagrangian", StopAt(7)),
                ("convergence", StopAt(7)),
                ("accumulation", StopInRecovery(3)),
                ("bf16", StopInRecovery(3)),
                ("checkpointing", StopInRecovery(3)),
                ("best", StopInRecovery(1)),
                ("best", StopInRecovery(3)),
            )
        ),
    ],
)
def test_a_resumed_training_equals_an_uninterrupted_one(tmp_path, assert_same, name, stop):
    save = {"save_steps": 2}
    options = [fresh(name) for _ in range(3)]
    options = [{**one, "args": {**one.get("args", {}), **save}} for one in options]
    whole = compact(tmp_path / "whole", **options[0])
    with pytest.raises(KeyboardInterrupt):
        compact(tmp_path / "parts", stop=stop, **options[1])
    resumed = compact(tmp_path / "parts", resume=True, **options[2])
    assert_same(weights_of(whole), weights_of(resumed))
    assert whole.state.global_step == resumed.state.global_step
    losses = [[row["loss"] for row in one.state.log_history if "loss" in row] for one in (whole, resumed)]
    assert losses[0] == losses[1]


def test_a_resumed_search_keeps_its_length(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        compact(tmp_path, stop=StopAt(7), **fresh("exact"))
    # Of the 16 steps, 12 were planned for it; a new search of heads alone would have all.
    assert compact(tmp_path, resume=True, **{**fresh("exact"), "recovery": None}).state.global_step == 4


def test_a_model_whose_file_has_other_names_resumes(tmp_path, assert_same):
    """As the original BERT; transformers saves such names again, and its Trainer does not read them."""
    make_classifier().save_pretrained(tmp_path / "old")
    path = tmp_path / "old" / "model.safetensors"
    names = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    weights = {re.sub("|".join(names), lambda found: names[found[0]], key): x for key, x in load_file(path).items()}
    save_file(weights, path, metadata={"format": "pt"})

    def load():
        return {"model": type(make_classifier()).from_pretrained(tmp_path / "old"), "args": {"save_steps": 2}}

    whole = compact(tmp_path / "whole", **load())
    for stop in (StopAt(7), StopInRecovery(3)):
        with pytest.raises(KeyboardInterrupt):
            compact(tmp_path / "parts", stop=stop, resume=stop.step == 3, **load())
    assert_same(weights_of(whole), weights_of(compact(tmp_path / "parts", resume=True, **load())))


@pytest.mark.runs
@pytest.mark.parametrize("place", ["finalize", "_begin_recovery"])
def test_a_training_that_was_stopped_between_the_phases_resumes(tmp_path, assert_same, monkeypatch, place):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    whole = compact(tmp_path / "whole")
    with monkeypatch.context() as patched:
        patched.setattr(GatedTrainer, place, stop)
        with pytest.raises(KeyboardInterrupt):
            compact(tmp_path / "parts")
    assert_same(weights_of(whole), weights_of(compact(tmp_path / "parts", resume=True)))


def timed(keep, neurons):
    """Return an objective as ``budget_for_speedup`` does, whose numbers differ a little each time."""
    objective = gating.ExactBudget()
    objective.take_measured({"keep": keep, "cost": {"heads": 1.0, "neurons": neurons}})
    return objective


@pytest.mark.parametrize("stop", first_of([StopAt(7), StopInRecovery(1), StopInRecovery(3)]))
def test_a_measured_budget_is_that_of_the_checkpoint(tmp_path, assert_same, stop):
    both = {"gate_options": {"units": ["heads", "neurons"], "group_size": 8}, "args": {"save_steps": 2}}
    whole = compact(tmp_path / "whole", objective=timed(0.44788, 0.71), **both)
    with pytest.raises(KeyboardInterrupt):
        compact(tmp_path / "parts", stop=stop, objective=timed(0.44788, 0.71), **both)
    resumed = compact(tmp_path / "parts", resume=True, objective=timed(0.64981, 1.0), **both)
    assert_same(weights_of(whole), weights_of(resumed))


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
            "fine_tuning": 0,
            "args": {"save_steps": 2},
        }

    whole = compact(tmp_path / "whole", **options())
    assert whole.model.config.num_hidden_layers == 2
    with pytest.raises(KeyboardInterrupt):
        compact(tmp_path / "parts", stop=StopInRecovery(3), **options())
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
    """Asks the trainer to end in the recovery, as callbacks with a limit of time or of cost do."""

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = control.should_training_stop or "recovery" in args.output_dir


@pytest.mark.runs
def test_a_training_that_was_stopped_in_the_recovery_saves_nothing_and_resumes(tmp_path, assert_same):
    save = {"save_steps": 1}
    whole = compact(tmp_path / "whole", args=save)
    trainer = make_trainer(tmp_path / "parts" / "checkpoints", args=save)
    stop, place = StopSoftly(), tmp_path / "parts" / "compact"
    trainer.add_callback(stop)
    with pytest.raises(OperationError, match="The recovery was stopped after 1 of 4 steps"):
        trainer.train_and_compact(place)
    assert not place.exists()
    # Either in the same process or in another one.
    trainer.remove_callback(stop)
    for resumed in (trainer, make_trainer(tmp_path / "parts" / "checkpoints", args=save)):
        resumed.train_and_compact(place, resume_from_checkpoint=True, overwrite=True)
        assert resumed.state.global_step == 4
        assert_same(weights_of(whole), weights_of(resumed))


@pytest.mark.runs
def test_a_finished_training_resumes_to_the_same_model(tmp_path, assert_same):
    trainer = compact(tmp_path)
    again = make_trainer(tmp_path / "checkpoints")
    again.train_and_compact(tmp_path / "again", resume_from_checkpoint=True)
    assert count_units(again.model, "heads") == 5
    assert_same(weights_of(trainer), weights_of(again))


@pytest.mark.filterwarnings("ignore:.*no checksums:UserWarning")
def test_a_checkpoint_of_a_search_is_no_compact_model(tmp_path):
    make_trainer(tmp_path).train()
    with pytest.raises(InputError, match="head_gates"):
        gating.load_compact(tmp_path / "checkpoint-12")


def test_a_checkpoint_without_an_optimizer_is_refused(tmp_path):
    make_trainer(tmp_path, args={"save_only_model": True}).train()
    resumed = make_trainer(tmp_path)
    with pytest.raises(InputError, match=r"checkpoint-4 has no optimizer\.pt"):
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert resumed.state.global_step == 0


@pytest.mark.runs
def test_a_new_training_sets_the_checkpoints_of_an_earlier_one_aside(tmp_path, assert_same):
    compact(tmp_path)
    other = make_trainer(tmp_path / "checkpoints", model=make_classifier(3), callbacks=[StopAt(6)])
    with pytest.raises(KeyboardInterrupt):
        other.train()
    earlier = {path.name for path in (tmp_path / "checkpoints" / "earlier").iterdir()}
    assert earlier == {"checkpoint-4", "checkpoint-8", "checkpoint-12", "recovery"}
    resumed = make_trainer(tmp_path / "checkpoints", model=make_classifier(3))
    resumed.train(resume_from_checkpoint=True)
    whole = make_trainer(tmp_path / "whole", model=make_classifier(3))
    whole.train()
    assert_same(weights_of(whole), weights_of(resumed))


@pytest.mark.runs
def test_a_checkpoint_that_was_not_finished_is_not_chosen(tmp_path, assert_same):
    whole = compact(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        compact(tmp_path / "parts", stop_at=9)
    (tmp_path / "parts" / "checkpoints" / "checkpoint-9").mkdir()
    assert_same(weights_of(whole), weights_of(compact(tmp_path / "parts", resume=True)))
