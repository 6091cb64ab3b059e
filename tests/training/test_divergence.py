"""A run ends when its loss or its weights are not finite."""

import math

import pytest
import torch

from gating.training.checkpoints import read_checkpoint
from gating.training.module import FineTuning
from tests.support.interruptions import at_batch, end_of, steps_of_checkpoints

pytestmark = pytest.mark.runs


def bad_loss(monkeypatch, *, after: int, value: float, gradient_only: bool = False) -> None:
    """Multiply the loss or its gradient by NaN or infinity after a step of the run."""
    training_step = FineTuning.training_step

    def step(self, batch, batch_idx):
        loss = training_step(self, batch, batch_idx)
        if self.step_in_run < after:
            return loss
        if gradient_only:
            loss.register_hook(lambda gradient: gradient * math.nan)
            return loss
        return loss * value

    monkeypatch.setattr(FineTuning, "training_step", step)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_the_run_with_step_checkpoint_and_advice(
    value, inputs, tmp_path, monkeypatch, capsys
):
    bad_loss(monkeypatch, after=5, value=value)
    folder = tmp_path / "run"
    assert end_of(folder, inputs, "callbacks.checkpoint.every_n_steps=1") == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("error: The loss is not a number at step 6 of the run")
    assert f"The last good checkpoint is {folder}/checkpoints/search/step-5.ckpt. Begin again" in error
    assert "optimizer.lr" in error


def test_weights_that_are_not_finite_are_not_saved(inputs, tmp_path, monkeypatch, capsys):
    """The loss is still finite when gradients become NaN; the next loss is not."""
    bad_loss(monkeypatch, after=5, value=1.0, gradient_only=True)
    folder = tmp_path / "run"
    assert end_of(folder, inputs, "callbacks.checkpoint.every_n_steps=1", "trainer.gradient_clip_val=null") == 1
    assert "not a number at step 7" in capsys.readouterr().err
    assert steps_of_checkpoints(folder, "search") == [4, 5]
    weights = read_checkpoint(folder / "checkpoints" / "search" / "step-5.ckpt")["state_dict"]
    assert all(bool(tensor.isfinite().all()) for tensor in weights.values() if isinstance(tensor, torch.Tensor))


def test_divergence_at_the_first_step_has_no_checkpoint(inputs, tmp_path, monkeypatch, capsys):
    bad_loss(monkeypatch, after=0, value=math.nan)
    with at_batch(2, lambda: pytest.fail("it went on")):
        assert end_of(tmp_path / "run", inputs) == 1
    assert "There is no checkpoint before it" in capsys.readouterr().err
