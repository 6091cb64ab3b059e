"""Stop of a run whose loss is not finite."""

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
from gating.training.checkpoints import found_checkpoints
from gating.training.module import FineTuning

__all__ = ["DivergedError", "DivergenceStop"]


class DivergedError(OperationError):
    """The loss is NaN or infinite; resuming from the last checkpoint would diverge again."""


class DivergenceStop(Callback):
    """Callback that stops training in all ranks when the loss is NaN or infinite.

    On a GPU or with several ranks, where the check synchronizes, it runs only every ``log_every_n_steps``. Meanwhile
    no checkpoint is saved: :class:`~gating.training.checkpoints.RunCheckpoint` checks the weights.
    """

    def __init__(self, checkpoints: Path) -> None:
        """Args: ``checkpoints`` is the folder of the phase's checkpoints, for the message."""
        self._checkpoints = checkpoints
        # First step of the run with a loss that is not finite, or infinity; on the loss's device.
        self._first: Tensor | None = None

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Record whether the loss is finite, and check the record if due."""
        assert isinstance(pl_module, FineTuning)
        assert isinstance(outputs, Mapping)
        loss: Tensor = outputs["loss"]
        if self._first is None:
            self._first = torch.full((), torch.inf, device=loss.device)
        this_step = torch.where(loss.isfinite(), torch.inf, float(pl_module.step_in_run))
        self._first = torch.minimum(self._first, this_step)
        is_cheap = loss.device.type == "cpu" and trainer.world_size == 1
        if is_cheap or trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self._check()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check the last steps."""
        if self._first is not None:
            self._check()

    def _check(self) -> None:
        assert self._first is not None
        first = float(self._first)
        # The first step over all ranks, as the maximum of its negative.
        (negated,) = all_reduce_max(-(2**62) if math.isinf(first) else -int(first))
        if negated > -(2**62):
            saved = found_checkpoints(self._checkpoints)
            kept = f"The last good checkpoint is {saved[0]}" if saved else "There is no checkpoint before it"
            raise DivergedError(
                f"The loss is not a number at step {-negated} of the run: training has diverged. {kept}. Begin again "
                "with a lower optimizer.lr or trainer.gradient_clip_val, or with trainer.precision=32-true."
            )
