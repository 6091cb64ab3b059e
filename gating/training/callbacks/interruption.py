"""Interruption of a run when a phase stops before its last step."""

import time
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback, Timer

from gating.distributed.collectives import all_reduce_max
from gating.training.callbacks.gates import SearchEnd
from gating.training.checkpoints import RunCheckpoint
from gating.training.signals import Unfinished

__all__ = ["InterruptOnStop", "check_completed", "to_seconds"]


class InterruptOnStop(Callback):
    """Callback that interrupts a run when ``trainer.max_time`` or a callback such as ``EarlyStopping`` stops a phase.

    Lightning would end the epoch, from where a run cannot resume bit-exactly. Instead, a checkpoint is requested before
    the next step, and the run is interrupted after it. A search that stops because its gates have converged is not
    interrupted.
    """

    def __init__(self, phase: str, *, deadline: float | None, max_time: Any) -> None:
        """Set the time limit.

        Args:
            phase: Name of the phase.
            deadline: Time limit, in seconds of ``time.monotonic``; None without a limit.
            max_time: The setting ``trainer.max_time``, for the message.
        """
        self._phase = phase
        self._deadline = deadline
        self._max_time = max_time
        self._reason: str | None = None
        self._step = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start to count steps; at least one is taken."""
        self._step = trainer.global_step
        self._reason = None
        self._take_over(trainer)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Interrupt the run; :class:`RunCheckpoint` precedes this callback and has saved a checkpoint."""
        if trainer.global_step == self._step:
            return  # In the middle of accumulating gradients.
        self._step = trainer.global_step
        if self._reason is not None:
            raise Unfinished(self._phase, step=self._step, num_steps=trainer.max_steps, reason=self._reason)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Check the time limit and whether other callbacks stop training."""
        self._take_over(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check whether other callbacks stop training."""
        self._take_over(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check whether other callbacks stop training."""
        self._take_over(trainer)

    def _take_over(self, trainer: pl.Trainer) -> None:
        """Postpone a stop until the next checkpoint, unless the phase is complete; all ranks decide alike."""
        is_late = self._deadline is not None and time.monotonic() > self._deadline
        should_stop, is_late = map(bool, all_reduce_max(int(trainer.should_stop), int(is_late)))
        if not (should_stop or is_late) or trainer.global_step >= trainer.max_steps or _has_converged(trainer):
            return
        trainer.should_stop = False
        self._reason = f"trainer.max_time={self._max_time} is over" if is_late else _describe_stop(trainer)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, RunCheckpoint):
                callback.request()


def check_completed(trainer: pl.Trainer, *, phase: str) -> None:
    """Check that a phase ended after its last step, or because the gates have converged.

    Raises:
        Unfinished: The phase ended early for another reason.
    """
    step, num_steps = trainer.global_step, trainer.max_steps
    if step < num_steps and not _has_converged(trainer):
        raise Unfinished(phase, step=step, num_steps=num_steps, reason=_describe_stop(trainer))


def to_seconds(max_time: Any) -> float | None:
    """Return a time limit in seconds, given in any form that Lightning's ``Timer`` accepts."""
    return Timer(duration=max_time).time_remaining()


def _has_converged(trainer: pl.Trainer) -> bool:
    return any(isinstance(callback, SearchEnd) and callback.reason for callback in trainer.callbacks)  # type: ignore[attr-defined]


def _describe_stop(trainer: pl.Trainer) -> str:
    others = [type(c).__name__ for c in trainer.callbacks if not type(c).__module__.startswith("gating.")]  # type: ignore[attr-defined]
    return f"training was stopped from outside, perhaps by one of the callbacks ({', '.join(others) or 'none'})"
