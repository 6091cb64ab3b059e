"""Search, removal and recovery in transformers' Trainer."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback

import gating
from gating.structure.layers import count_units
from tests.integrations.conftest import make_classifier, make_trainer, weights_of
from tests.support.tiers import first_of


def test_one_call_leaves_a_compact_model_with_the_heads_that_were_asked_for(tmp_path, assert_same):
    trainer = make_trainer(tmp_path / "checkpoints")
    folder = trainer.train_and_compact(tmp_path / "compact")
    assert trainer.state.global_step == 4
    loaded = gating.load_compact(folder)
    assert count_units(gating.load_compact(tmp_path / "checkpoints" / "recovery" / "start"), "heads") == 5
    assert count_units(loaded, "heads") == 5
    assert_same(weights_of(trainer), dict(loaded.state_dict()))
    assert "## Heads that were kept" in (folder / "README.md").read_text()


@pytest.mark.runs
def test_the_log_has_the_state_of_the_gates_in_the_search_alone(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.train()
    rows = {row["step"]: row for row in trainer.state.log_history if "loss" in row}
    assert list(rows) == [2, 4, 6, 8, 10, 12]
    assert rows[2]["gates/target"] == pytest.approx(12, abs=1e-3)
    assert rows[12]["gates/target"] == pytest.approx(5)
    assert all({"gates/penalty", "gates/open"} <= row.keys() for row in rows.values())
    # A model has dozens of the numbers of a layer.
    assert not any(name.startswith("gates/layer_") for name in rows[2])
    trainer.finalize()
    trainer.train()
    assert [row["step"] for row in trainer.state.log_history if "loss" in row] == [2, 4]
    assert not any("gates/open" in row for row in trainer.state.log_history)


@pytest.mark.runs
def test_phases_by_hand_equal_the_one_call(tmp_path, assert_same):
    one = make_trainer(tmp_path / "one")
    one.train_and_compact(tmp_path / "compact")
    other = make_trainer(tmp_path / "other")
    other.train()
    assert other.state.global_step == 12
    report = other.finalize()
    assert report.num_heads == 5
    assert report.max_difference < 1e-5
    other.train()
    assert_same(weights_of(one), weights_of(other))


def rates_of(trainer):
    return [row["learning_rate"] / 1e-3 for row in trainer.state.log_history if "loss" in row]


@pytest.mark.runs
def test_the_search_has_the_rates_of_a_plain_trainer_and_the_recovery_begins_them_again(tmp_path):
    arguments = {"lr_scheduler_type": "linear", "warmup_steps": 4, "logging_steps": 1}
    trainer = make_trainer(tmp_path / "gated", args=arguments)
    of_gates = []
    step = trainer.training_step

    def record(*args, **kwargs):
        of_gates.append([one["lr"] for one in trainer.optimizer.param_groups if one.get("name") == "gates"])
        return step(*args, **kwargs)

    trainer.training_step = record
    trainer.train()
    plain = make_trainer(tmp_path / "plain", cls=Trainer, args=arguments)
    plain.train()
    assert rates_of(trainer) == pytest.approx(rates_of(plain)[:12])
    trainer.finalize()
    trainer.train()
    # Four of 16 steps are a warm-up, and one of the four of the recovery.
    assert rates_of(trainer) == pytest.approx([0, 1, 2 / 3, 1 / 3])
    assert of_gates == [[0.1]] * 12 + [[]] * 4


def test_gates_and_multipliers_have_groups_of_their_own_without_decay(tmp_path):
    trainer = make_trainer(
        tmp_path, objective=gating.Lagrangian(num_heads=5), gate_lr=0.3, multiplier_lr=0.2, args={"weight_decay": 0.1}
    )
    groups = trainer.create_optimizer().param_groups
    assert [(one.get("name"), one["lr"], one["weight_decay"]) for one in groups] == [
        (None, 1e-3, 0.1),
        (None, 1e-3, 0.0),
        ("gates", 0.3, 0.0),
        ("multipliers", 0.2, 0.0),
    ]
    assert groups[2]["params"] == list(trainer.gates.parameters())
    assert groups[3]["maximize"]
    assert all(parameter.requires_grad for parameter in trainer.gates.parameters())


class Slope(gating.Objective):
    """An objective whose penalty has the gradient 1000 at every gate."""

    def penalty(self, gates):
        return 1000 * gates.log_alpha.sum()


@pytest.mark.runs
@pytest.mark.parametrize("accumulated", first_of([2, 1, 4]))
@pytest.mark.parametrize("accepts_items", [True, False])
def test_the_penalty_counts_once_for_a_step_of_several_batches(tmp_path, accumulated, accepts_items):
    trainer = make_trainer(
        tmp_path,
        objective=Slope(),
        gate_lr=1e-6,
        recovery=0,
        args={
            "optim": "sgd",
            "max_steps": 1,
            "max_grad_norm": 0,
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": accumulated,
            "save_strategy": "no",
        },
    )
    trainer.model_accepts_loss_kwargs = accepts_items
    before = trainer.gates.log_alpha.detach().clone()
    trainer.train()
    assert torch.allclose(trainer.gates.log_alpha, before - 1e-3, atol=1e-5)


def test_evaluation_has_no_penalty(tmp_path):
    trainer = make_trainer(tmp_path, objective=gating.FixedPrice(price=100.0, start=0.0))
    plain = make_trainer(tmp_path, cls=Trainer)
    trainer.search.objective.update(trainer.gates, 1.0)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(plain.evaluate()["eval_loss"], abs=1e-3)


@pytest.mark.runs
def test_a_converged_search_ends_early_and_leaves_its_steps_to_the_recovery(tmp_path):
    always = gating.Convergence(patience=1, max_undecided=1.0)
    always.update = lambda *_: "they have converged"
    trainer = make_trainer(tmp_path, convergence=always)
    trainer.train()
    assert trainer.state.global_step == 10
    trainer.finalize()
    trainer.train()
    assert trainer.state.global_step == 6


BEST = {
    "eval_strategy": "steps",
    "eval_steps": 1,
    "save_steps": 1,
    "load_best_model_at_end": True,
    "metric_for_best_model": "score",
    "greater_is_better": True,
}


@pytest.mark.runs
def test_the_best_model_and_early_stopping_are_those_of_the_recovery(tmp_path, assert_same):
    trainer = make_trainer(tmp_path, args=BEST, callbacks=[EarlyStoppingCallback(early_stopping_patience=2)])
    # It falls from step to step.
    trainer.compute_metrics = lambda _: {"score": -trainer.state.global_step}
    trainer.train()
    assert trainer.state.global_step == 12
    assert trainer.gates.expected_open().item() == pytest.approx(5, abs=1e-3)
    trainer.finalize()
    removed = weights_of(trainer)
    trainer.train()
    assert trainer.state.global_step == 2
    assert trainer.state.best_model_checkpoint.endswith("recovery/checkpoint-0")
    assert count_units(trainer.model, "heads") == 5
    assert_same(removed, weights_of(trainer))
    again = make_trainer(tmp_path / "again", args=BEST, callbacks=[EarlyStoppingCallback(early_stopping_patience=2)])
    again.compute_metrics = lambda _: {"score": -again.state.global_step}
    assert (again.train_and_compact(tmp_path / "compact") / "config.json").is_file()
    assert again.state.global_step == 2


@pytest.mark.runs
def test_a_recovery_that_is_better_than_the_removal_is_the_best_model(tmp_path):
    trainer = make_trainer(tmp_path, args={**BEST, "save_total_limit": 2})
    trainer.compute_metrics = lambda _: {"score": trainer.state.global_step}
    trainer.train_and_compact(tmp_path / "compact")
    assert trainer.state.best_model_checkpoint.endswith("recovery/checkpoint-4")
    assert not list(tmp_path.glob("recovery/checkpoint-0"))


@pytest.mark.runs
@pytest.mark.parametrize(("max_steps", "ends"), [(-1, [8, 16, 24]), (16, [8, 12])])
def test_each_epoch_is_evaluated_and_saved_once(tmp_path, max_steps, ends):
    strategies = {"eval_strategy": "epoch", "save_strategy": "epoch", "logging_strategy": "epoch"}
    trainer = make_trainer(tmp_path, args={**strategies, "max_steps": max_steps, "num_train_epochs": 4})
    trainer.train()
    logged = trainer.state.log_history
    assert [entry["step"] for entry in logged if "eval_loss" in entry] == ends
    assert [entry["step"] for entry in logged if "loss" in entry] == ends
    assert (tmp_path / f"checkpoint-{ends[-1]}" / "gates.pt").is_file()


@pytest.mark.runs
def test_an_optimizer_of_the_user_trains_both_phases(tmp_path):
    chosen = (torch.optim.AdamW, {"lr": 5e-4, "betas": (0.8, 0.9)})
    options = {"model_init": lambda: make_classifier(), "optimizer_cls_and_kwargs": chosen}
    trainer = make_trainer(
        tmp_path, args={"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 1e-5}}, **options
    )
    trainer.train()
    assert trainer.optimizer.param_groups[-1]["name"] == "gates"
    trainer.finalize()
    trainer.train()
    assert {group["betas"] for group in trainer.optimizer.param_groups} == {(0.8, 0.9)}
    assert {group["initial_lr"] for group in trainer.optimizer.param_groups} == {5e-4}
    assert count_units(trainer.model, "heads") == 5


def test_saving_a_model_with_gates_warns(tmp_path):
    trainer = make_trainer(tmp_path)
    with pytest.warns(UserWarning, match="still has gates"):
        trainer.save_model(str(tmp_path / "saved"))


def test_budgets_are_plain_arguments_and_their_units_are_printed(tmp_path, capsys):
    both = {"gate_options": {"units": ["heads", "neurons"]}, "fine_tuning": 0}
    keep = make_trainer(tmp_path, objective=None, keep=0.5, **both)
    assert "keep=0.5" in str(keep.search.objective)
    keep.print_trainable_units()
    assert "gated heads: 12 || all heads: 12 || gated%: 100" in capsys.readouterr().out
    trainer = make_trainer(tmp_path, objective=None, num_heads=3)
    trainer.train()
    assert trainer.finalize().num_heads == 3


@pytest.mark.runs
@pytest.mark.parametrize("adapters", [False, True])
def test_a_speedup_is_measured_before_the_search_and_after_it(tmp_path, capsys, known_times, adapters):
    def make():
        config = LoraConfig(r=2, target_modules=["query", "value"])
        model = get_peft_model(make_classifier(), config) if adapters else make_classifier()
        return make_trainer(tmp_path / "checkpoints", model=model, objective=None, speedup=1.2)

    trainer = make()
    assert "Compact copies are timed on this device: 8 x 8 tokens" in capsys.readouterr().out
    trainer.train()
    assert trainer.speedup is None
    trainer.finalize()
    assert trainer.state.log_history[-1]["speedup"] == trainer.speedup == pytest.approx(1.2, rel=0.05)
    # The choice is in the start of the recovery.
    again = make()
    again.train(resume_from_checkpoint=True)
    assert again.speedup == trainer.speedup
    assert again.model.num_parameters() == trainer.model.num_parameters()


@pytest.mark.runs
def test_a_training_that_was_stopped_and_begins_again_has_a_new_search(tmp_path):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = control.should_training_stop or state.global_step == 9

    trainer, stop = make_trainer(tmp_path), Stop()
    trainer.add_callback(stop)
    trainer.train()
    trainer.remove_callback(stop)
    trainer.train()
    history = [row["gates/open"] for row in trainer.state.log_history if "gates/open" in row]
    assert len(history) == 6
    assert history[0] == 12  # All gates are open again.
    assert trainer.finalize().num_heads == 5
