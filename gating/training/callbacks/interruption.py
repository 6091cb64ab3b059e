"""The end of a phase before its last step, which is an interruption unless the gates have come to rest."""

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
    """Interrupts a run where something ends a phase early, such as ``trainer.max_time`` or ``EarlyStopping``.

    Lightning would end the epoch there, from where no run can resume to the bit. Instead the checkpoint before the next
    step is requested, and the run is interrupted behind it.
    """

    def __init__(self, phase: str, *, deadline: float | None, max_time: Any) -> None:
        """Set the time limit.

        Args:
            phase: Name of the phase.
            deadline: When the time of the run is over, in seconds of ``time.monotonic``; None without a limit.
            max_time: The setting it comes from, for the message.
        """
        self._phase = phase
        self._deadline = deadline
        self._max_time = max_time
        self._reason: str | None = None
        self._step = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin to count steps, of which there is at least one."""
        self._step = trainer.global_step
        self._reason = None
        self._take_over(trainer)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Interrupt the run; the callback that writes checkpoints comes before this one."""
        if trainer.global_step == self._step:
            return  # In the middle of accumulating gradients.
        self._step = trainer.global_step
        if self._reason is not None:
            raise Unfinished(self._phase, step=self._step, num_steps=trainer.max_steps, reason=self._reason)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at the clock, and for a stop that other callbacks have asked for."""
        self._take_over(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look for a stop that other callbacks have asked for."""
        self._take_over(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look for a stop that other callbacks have asked for."""
        self._take_over(trainer)

    def _take_over(self, trainer: pl.Trainer) -> None:
        """Put off a stop until the checkpoint, unless the phase is complete; the same in all processes."""
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
    """Make sure that a phase has ended after its last step, or because the gates have come to rest.

    Raises:
        Unfinished: It has not.
    """
    step, num_steps = trainer.global_step, trainer.max_steps
    if step < num_steps and not _has_converged(trainer):
        raise Unfinished(phase, step=step, num_steps=num_steps, reason=_describe_stop(trainer))


def to_seconds(max_time: Any) -> float | None:
    """Return a time limit, in any of the forms that Lightning takes, in seconds."""
    return Timer(duration=max_time).time_remaining()


def _has_converged(trainer: pl.Trainer) -> bool:
    return any(isinstance(callback, SearchEnd) and callback.reason for callback in trainer.callbacks)  # type: ignore[attr-defined]


def _describe_stop(trainer: pl.Trainer) -> str:
    others = [type(c).__name__ for c in trainer.callbacks if not type(c).__module__.startswith("gating.")]  # type: ignore[attr-defined]
    return f"training was stopped from outside, perhaps by one of the callbacks ({', '.join(others) or 'none'})"
