"""Ending a run that has gone astray."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from gating.distributed.collectives import all_reduce_max
from gating.errors import OperationError
from gating.training.checkpoints import checkpoints_in
from gating.training.module import FineTuning

__all__ = ["DivergedError", "DivergenceStop"]


class DivergedError(OperationError):
    """A loss is no number; going on from the last checkpoint would come to the same."""


class DivergenceStop(Callback):
    """Stops training at a loss that is no number, in all processes.

    On a GPU and with several processes, which would wait for the answer at every step, it looks at the steps that are
    logged. No checkpoint is written in between: :class:`~gating.training.checkpoints.RunCheckpoint` looks at the
    weights.
    """

    def __init__(self, checkpoints: Path) -> None:
        """Args: ``checkpoints`` is the folder of the phase's checkpoints, for the message."""
        self._checkpoints = checkpoints
        # The lowest step of the run with such a loss, where the loss is: infinite if there is none.
        self._first: Tensor | None = None

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take note of the loss, and look if it is time."""
        assert isinstance(pl_module, FineTuning)
        assert isinstance(outputs, Mapping)
        loss: Tensor = outputs["loss"]
        if self._first is None:
            self._first = torch.full((), torch.inf, device=loss.device)
        bad = torch.where(loss.isfinite(), torch.inf, float(pl_module.step_in_run))
        self._first = torch.minimum(self._first, bad)
        at_once = loss.device.type == "cpu" and trainer.world_size == 1
        if at_once or trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self._look()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look at the last steps."""
        if self._first is not None:
            self._look()

    def _look(self) -> None:
        assert self._first is not None
        first = float(self._first)
        # The lowest step of all processes.
        (negated,) = all_reduce_max(-(2**62) if math.isinf(first) else -int(first))
        if negated > -(2**62):
            good = checkpoints_in(self._checkpoints)
            kept = f"The last good checkpoint is {good[0]}" if good else "There is no checkpoint before it"
            raise DivergedError(
                f"The loss is not a number at step {-negated} of the run: training has diverged. {kept}. Begin again "
                "with a lower optimizer.lr or trainer.gradient_clip_val, or with trainer.precision=32-true."
            )
