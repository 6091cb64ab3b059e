"""Phases that end before their last step can be resumed, with the same result."""

import json
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from safetensors.torch import load_file

import train
from gating.training.module import FineTuning
from tests.support.interruptions import Interrupted, at_batch, end_of, interrupt, run_in, steps_of_checkpoints
from tests.support.tiny_run import compose_settings

pytestmark = pytest.mark.runs

EARLY = (
    "+callbacks.early={_target_: pytorch_lightning.callbacks.EarlyStopping, monitor: val/loss, mode: min, patience: 1, "
    "min_delta: 1000.0, verbose: false}"
)


class StopAt(pl.Callback):
    """Stops training in a hook after a number of steps."""

    def __init__(self, hook: str, step: int) -> None:
        def stop(trainer: pl.Trainer, *_: object, **__: object) -> None:
            trainer.should_stop = trainer.should_stop or trainer.global_step >= step

        setattr(self, hook, stop)


def assert_same_weights(one: Path, other: Path) -> None:
    first, second = (load_file(folder / "compact" / "model.safetensors") for folder in (one, other))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def stop_at(hook: str, step: int) -> str:
    return f"+callbacks.stop={{_target_: {__name__}.StopAt, hook: {hook}, step: {step}}}"


@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_validation_end", "on_train_epoch_end", "on_train_start"])
def test_a_phase_stopped_by_a_callback_is_interrupted_and_resumes_without_it(hook, inputs, whole, tmp_path, capsys):
    folder = tmp_path / "run"
    step = 0 if hook == "on_train_start" else 2
    assert end_of(folder, inputs, stop_at(hook, step)) == 143
    err = capsys.readouterr().err
    assert "stopped from outside" in err
    assert f"Resume the run: python train.py resume={folder}" in err
    assert "Traceback" not in err
    assert not (folder / "metrics.json").exists()
    assert not (folder / "compact").exists()
    last = {"on_validation_end": 4, "on_train_epoch_end": 8, "on_train_batch_end": 2, "on_train_start": 1}[hook]
    assert steps_of_checkpoints(folder, "search")[-1] == last
    with at_batch(100, lambda: None) as steps:
        run_in(folder, inputs, "resume=auto")
    assert steps[0] == last
    assert_same_weights(folder, whole)


def test_the_time_limit_interrupts_each_phase_and_the_run_resumes_to_its_end(inputs, whole, tmp_path, capsys):
    folder, ends = tmp_path / "run", []
    for _ in range(20):
        ends.append(end_of(folder, inputs, "trainer.max_time={microseconds: 1}", "resume=auto"))
        if ends[-1] == 0:
            break
    assert set(ends[:-1]) == {143}
    assert len(ends) == 11
    err = capsys.readouterr().err
    assert "The search phase was interrupted after 8 of 9 steps: trainer.max_time=" in err
    assert "The recovery phase was interrupted after 2 of 3 steps: trainer.max_time=" in err
    assert_same_weights(folder, whole)


PHASES = {"dense run": ["objective=none"], "fine-tuning": ["distillation=logits"]}


@pytest.mark.parametrize("phase", PHASES)
def test_other_phases_can_be_interrupted_too(phase, inputs, tmp_path, capsys, monkeypatch):
    inputs = [line for line in inputs if phase != "dense run" or not line.startswith("objective")]
    settings, train_step = PHASES[phase], FineTuning.training_step

    def step(self, batch, batch_idx):
        stops = self.objective is None and self.global_step == 1
        self.trainer.should_stop = self.trainer.should_stop or stops
        return train_step(self, batch, batch_idx)

    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(FineTuning, "training_step", step)
        assert end_of(folder, inputs, *settings) == 143
    assert "The dense phase was interrupted after 2 of " in capsys.readouterr().err
    assert not (folder / "metrics.json").exists()
    run_in(folder, inputs, *settings, "resume=auto")
    run_in(tmp_path / "whole", inputs, *settings)
    assert_same_weights(folder, tmp_path / "whole")


def test_early_stopping_ends_the_recovery_and_the_run_goes_on(inputs, tmp_path, capsys):
    """It stops at the second validation of the recovery, after 10 of 12 steps, and never in the search."""
    settings = [EARLY, "recovery=0.5", "trainer.val_check_interval=2", "callbacks.checkpoint.keep=99"]
    settings += ["keep_checkpoints=true", "recovery_keep=best"]
    run_in(tmp_path / "run", inputs, *settings)
    assert steps_of_checkpoints(tmp_path / "run", "recovery") == [8, 10]
    numbers = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert numbers["search_steps"] == 6
    assert numbers["kept_step"] in (8, 10)
    assert "in the last 1 records" in numbers["stopped_early"] or pl.__version__.startswith("2.5.")
    assert f"recovery ended after 4 of 6 steps: {numbers['stopped_early']}" in capsys.readouterr().out
    # Interrupted between two validations, and after the last one.
    with at_batch(10, interrupt), pytest.raises(Interrupted):
        run_in(tmp_path / "often", inputs, *settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gating.run.execute.export", lambda *_, **__: interrupt())
        with pytest.raises(Interrupted):
            run_in(tmp_path / "often", inputs, *settings, "resume=auto")
    with at_batch(99, interrupt) as steps:
        run_in(tmp_path / "often", inputs, *settings, "resume=auto")
    assert steps == []
    assert_same_weights(tmp_path / "run", tmp_path / "often")


def test_early_stopping_ends_a_dense_run(inputs, tmp_path):
    dense = [line for line in inputs if not line.startswith("objective.")]
    run_in(tmp_path / "run", dense, EARLY, "objective=none", "keep_checkpoints=true")
    assert steps_of_checkpoints(tmp_path / "run", "dense") == [4, 8]
    assert "stopped_early" in json.loads((tmp_path / "run" / "metrics.json").read_text())


def test_early_stopping_needs_a_metric_of_the_run(inputs, tmp_path, capsys):
    assert end_of(tmp_path / "run", inputs, EARLY.replace("val/loss", "val/acc")) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: monitor=val/acc ")
    assert "val/loss, val/accuracy" in err
    assert not (tmp_path / "run").exists()


def test_the_rest_of_a_run_may_have_another_time_limit(inputs, whole, tmp_path):
    folder = tmp_path / "run"
    assert end_of(folder, inputs, "trainer.max_time={microseconds: 1}") == 143
    overrides = [f"resume={folder}", "trainer.max_time=10:00:00:00", "data.num_workers=0"]
    train.guarded_run(compose_settings(overrides), overrides)
    assert_same_weights(folder, whole)


def test_a_stop_at_the_last_step_completes_the_phase(inputs, whole, tmp_path):
    run_in(tmp_path / "run", inputs, stop_at("on_train_epoch_end", 9))
    assert_same_weights(tmp_path / "run", whole)


def test_a_stop_between_accumulated_batches_waits_for_the_step(inputs, tmp_path):
    settings = ["trainer.accumulate_grad_batches=2", "trainer.val_check_interval=8"]
    folder = tmp_path / "run"
    assert end_of(folder, inputs, *settings, stop_at("on_train_batch_end", 3)) == 143
    run_in(folder, inputs, *settings, "resume=auto")
    run_in(tmp_path / "whole", inputs, *settings)
    assert_same_weights(folder, tmp_path / "whole")


def test_without_checkpoints_an_interrupted_phase_is_not_complete(inputs, tmp_path):
    assert end_of(tmp_path / "run", inputs, "callbacks=none", stop_at("on_train_batch_end", 3)) == 143
    assert not (tmp_path / "run" / "metrics.json").exists()


BAD = {
    "trainer.max_time=abc": "DD:HH:MM:SS",
    "+trainer.fast_dev_run=true": "use debug=fast",
}


@pytest.mark.parametrize("setting", BAD)
def test_settings_that_change_the_steps_of_phases_are_refused(setting, inputs, tmp_path, capsys):
    assert end_of(tmp_path / "run", inputs, setting) == 1
    assert BAD[setting] in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
