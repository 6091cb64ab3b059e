"""End of a phase before its last step: by early stopping, or as an interruption of the run."""

import math
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback, EarlyStopping, Timer
from pytorch_lightning.callbacks.early_stopping import EarlyStoppingReason

from gating.distributed.collectives import all_reduce_max, is_rank_zero
from gating.errors import InputError
from gating.tasks.base import Prepared
from gating.training.checkpoints import RunCheckpoint, remove_checkpoint
from gating.training.signals import DeferredSignals, Unfinished

_STOPPED = "training was stopped from outside, perhaps by one of the callbacks"


class InterruptOnStop(Callback):
    """Callback that interrupts a run at a signal, at ``trainer.max_time``, and where another callback stops a phase.

    Lightning would end the epoch, from where a run cannot resume bit-exactly. Instead, a checkpoint is requested before
    the next step, and the run is interrupted after it. A search that stops because its gates have converged is not
    interrupted, nor is a phase that ``EarlyStopping`` ends: the run goes on to the next one.
    """

    def __init__(self, phase: str, *, max_time: Any, started: float) -> None:
        """Args: ``max_time`` is in a form of Lightning's ``Timer``, from ``started`` on, of ``time.monotonic``."""
        seconds = Timer(duration=max_time).time_remaining()
        self._phase, self._max_time = phase, max_time
        self._deadline = math.inf if seconds is None else started + seconds
        self._signals: DeferredSignals | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Defer signals, after Lightning has set its own handlers, and count steps; at least one is taken."""
        self._step, self._signal, self._reason = trainer.global_step, 0, ""
        self._signals = DeferredSignals()
        # The checkpoint that a phase ends with may be loaded again.
        trainer.should_stop = trainer.should_stop or end_reason(trainer) is not None
        self._take_over(trainer)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any, **__: Any) -> None:
        """Interrupt the run; :class:`RunCheckpoint` precedes this callback and has saved a checkpoint."""
        if trainer.global_step == self._step:
            return  # Gradients are being accumulated.
        self._step = trainer.global_step
        if self._signal:
            self._act(trainer, self._signal)
        if self._reason:
            raise Unfinished(self._phase, step=self._step, num_steps=trainer.max_steps, reason=self._reason)

    def _take_over(self, trainer: pl.Trainer, *_: Any, **__: Any) -> None:
        """Postpone a stop until the next checkpoint, unless the phase is complete; all ranks decide alike."""
        if self._signals is None:
            return  # Lightning tries the validation before the first step.
        stops = (self._signals.number, int(trainer.should_stop), int(time.monotonic() > self._deadline))
        number, should_stop, is_late = all_reduce_max(*stops)
        if not (number or should_stop or is_late) or trainer.global_step >= trainer.max_steps or end_reason(trainer):
            return
        trainer.should_stop = False
        self._signal = number
        if is_late:
            self._reason = f"trainer.max_time={self._max_time}, the limit of each process, is over"
        elif should_stop:
            self._reason = _STOPPED
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, RunCheckpoint):
                callback.request()

    # Other callbacks may stop the training in each of them.
    on_train_batch_end = on_validation_end = on_train_epoch_end = _take_over

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop after a signal in the last step; :class:`RunCheckpoint` has saved the last checkpoint."""
        assert self._signals is not None
        if self._signals.number:
            self._act(trainer, self._signals.number)
        self._restore()

    def _act(self, trainer: pl.Trainer, number: int) -> None:
        assert self._signals is not None
        self._signal = 0
        self._signals.act(number)
        # The checkpoint that Lightning has written for a job that is queued again; the next phase must not find it.
        for copy in Path(trainer.default_root_dir).glob("hpc_ckpt_*.ckpt") if is_rank_zero() else ():
            remove_checkpoint(copy)

    def _restore(self, *_: Any, **__: Any) -> None:
        """Restore signal handlers; after an error no checkpoint is saved, since the state may be inconsistent."""
        if self._signals is not None:
            self._signals.restore()

    on_exception = _restore


def check_completed(trainer: pl.Trainer, *, phase: str) -> None:
    """Check that a phase ended after its last step, because the gates have converged, or by early stopping.

    Raises:
        Unfinished: The phase ended early for another reason.
    """
    step, num_steps = trainer.global_step, trainer.max_steps
    if step < num_steps and end_reason(trainer) is None:
        raise Unfinished(phase, step=step, num_steps=num_steps, reason=_STOPPED)


def check_monitors(callbacks: Iterable[Callback], prepared: Prepared) -> None:
    """Raise ``InputError`` if validation does not have a metric by which one of the callbacks stops early.

    Lightning would raise an error after the search, hours later.
    """
    known = [f"val/{name}" for name in ("loss", *prepared.metrics.keys(keep_base=True))]
    if f"val/{prepared.score.name}" not in known:
        return  # Some metrics have several values, whose names are known after the first validation.
    for name in [str(callback.monitor) for callback in callbacks if isinstance(callback, EarlyStopping)]:
        if not name.startswith("train/") and name not in known:
            raise InputError(f"monitor={name} is not a metric of this run: choose from {', '.join(known)}.")


def end_reason(trainer: pl.Trainer) -> str | None:
    """Return the reason why a phase is complete before its last step; None if it is not."""
    search = getattr(trainer.lightning_module, "search", None)
    if search is not None and search.reason:
        return str(search.reason)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, EarlyStopping) and callback.stopping_reason != EarlyStoppingReason.NOT_STOPPED:
            reason = str(callback.stopping_reason_message or callback.stopping_reason.value)
            return reason.removesuffix(" Signaling Trainer to stop.").rstrip(".")
    return None
