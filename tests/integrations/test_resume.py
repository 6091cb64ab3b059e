"""Interrupted trainings of a trainer with gates: resumed equals uninterrupted."""

import pytest
from transformers import TrainerCallback

import gating
from gating.errors import DamageError, InputError, MissingFileError, OperationError
from gating.pruning.measure import count_heads
from tests.integrations.conftest import make_classifier, make_trainer, weights_of


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
}


def fresh(name):
    return {key: value() if callable(value) else value for key, value in OPTIONS[name].items()}


# After a checkpoint of the search, at the end of the search, and after a checkpoint of the recovery.
@pytest.mark.parametrize(
    ("name", "stop_at"),
    [
        *(("exact", step) for step in (7, 13, 15)),
        ("lagrangian", 7),
        ("convergence", 7),
        ("accumulation", 15),
        ("bf16", 15),
        ("checkpointing", 15),
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


def test_a_training_that_was_stopped_in_the_search_removes_nothing(tmp_path):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 6

    trainer = make_trainer(tmp_path / "checkpoints", callbacks=[Stop()])
    with pytest.raises(OperationError, match="6 of 12 steps are done"):
        trainer.train_and_compact(tmp_path / "compact")
    assert trainer.gates.num_heads == 12


def test_a_checkpoint_of_the_recovery_is_for_the_model_of_the_search(tmp_path):
    compact(tmp_path)
    other = make_classifier()
    gating.prune_heads(other, {0: [1, 2, 3]})
    trainer = make_trainer(tmp_path / "checkpoints", model=other, objective=gating.ExactBudget(num_heads=5))
    with pytest.raises(InputError):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoints" / "checkpoint-16"))


def test_a_damaged_state_of_the_gates_is_named(tmp_path):
    compact(tmp_path)
    checkpoint = tmp_path / "checkpoints" / "checkpoint-8"
    (checkpoint / "gates.pt").write_bytes(b"damage")
    with pytest.raises(DamageError, match=r"checkpoint-8/gates\.pt is damaged"):
        make_trainer(tmp_path / "checkpoints").train(resume_from_checkpoint=str(checkpoint))
    (checkpoint / "gates.pt").unlink()
    with pytest.raises(MissingFileError, match=r"no gates\.pt"):
        make_trainer(tmp_path / "checkpoints").train(resume_from_checkpoint=str(checkpoint))


def test_a_finished_training_resumes_to_the_same_model(tmp_path, assert_same):
    trainer = compact(tmp_path)
    again = make_trainer(tmp_path / "checkpoints")
    again.train_and_compact(tmp_path / "again", resume_from_checkpoint=True)
    assert count_heads(again.model) == 5
    assert_same(weights_of(trainer), weights_of(again))


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"objective": gating.ExactBudget(num_heads=4)}, r"was written with objective=ExactBudget\(num_heads=5\), and"),
        ({"objective": gating.TopK(num_heads=5)}, r"this trainer has TopK\(num_heads=5\)"),
        ({"gate_options": {"exclude": ["encoder.layer.0.attention.self"]}}, "was written with other gates than those"),
    ],
)
def test_a_trainer_with_other_gates_or_another_objective_does_not_resume(tmp_path, changed, problem):
    make_trainer(tmp_path).train()
    trainer = make_trainer(tmp_path, **changed)
    with pytest.raises(InputError, match=problem):
        trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 0


@pytest.mark.filterwarnings("ignore:.*no checksums:UserWarning")
def test_a_checkpoint_of_a_search_is_no_compact_model(tmp_path):
    make_trainer(tmp_path).train()
    with pytest.raises(InputError, match="is a checkpoint of a search: its model still has gates"):
        gating.load_compact(tmp_path / "checkpoint-12")
