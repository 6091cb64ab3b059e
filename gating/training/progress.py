"""The progress of a phase of training, its interruption, and its end."""

import math
import sys
import time
from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback, EarlyStopping, ProgressBar, Timer
from tqdm import tqdm

from gating.distributed.collectives import all_reduce_max, is_rank_zero
from gating.errors import InputError
from gating.gates import HeadGates
from gating.objectives import Objective
from gating.objectives.gate_metrics import gate_metrics, metrics_of, quantity_of
from gating.tasks.base import Prepared
from gating.tracking.progress import bar
from gating.training.checkpoints import RunCheckpoint
from gating.training.module import FineTuning
from gating.training.signals import DeferredSignals, Stopped, Unfinished


class PhaseProgressBar(ProgressBar):
    """Bar of a whole phase, where Lightning's begin again with each epoch, and one line for each validation."""

    def __init__(self, phase: str) -> None:
        """Args: ``phase`` is the displayed name."""
        super().__init__()
        self._phase = phase
        self._steps: tqdm[Any] | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin to count steps."""
        self._steps = bar(title=self._phase, total=trainer.max_steps, unit="steps", initial=trainer.global_step)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any, **__: Any) -> None:
        """Count a step; gradients may be accumulated over several batches."""
        assert self._steps is not None
        assert isinstance(pl_module, FineTuning)
        if trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            status = f"loss {float(trainer.callback_metrics.get('train/loss', float('nan'))):.3f}"
            if (search := pl_module.search) is not None:
                status += f", {describe_progress(search.gates, search.objective)}"
            self._steps.set_postfix_str(status, refresh=False)
        self._steps.update(trainer.global_step - self._steps.n)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print the validation metric above the bar."""
        assert isinstance(pl_module, FineTuning)
        if self._steps is None or not is_rank_zero():
            return
        metric = pl_module.score.name
        value = float(trainer.callback_metrics[f"val/{metric}"])
        line = f"{self._phase} step {trainer.global_step}/{trainer.max_steps}: validation {metric} {value:.4f}"
        if pl_module.search is not None:
            line += f", {describe_open(pl_module.search.gates)} open"
        with tqdm.external_write_mode(file=sys.stdout) if sys.stdout.isatty() else nullcontext():
            print(line, flush=True)

    def disable(self) -> None:
        """Do nothing: only rank 0 shows the bar."""

    def _stop(self, *_: Any, **__: Any) -> None:
        """Stop the bar, which restores the terminal."""
        if self._steps is not None:
            self._steps.close()

    on_train_end = on_exception = _stop


def describe_open(gates: HeadGates) -> str:
    """Return the number of open units, as in ``40 of 72 heads and 3,072 of 9,216 neurons``."""
    return " and ".join(f"{gates.count_open(unit):,} of {gates.total(unit):,} {unit}" for unit in gates.units)


def describe_progress(gates: HeadGates, objective: Objective) -> str:
    """Return the expected amount of open units and its target, as in ``heads 40.3 → 18``."""
    quantity, metrics = quantity_of(gates, objective), gate_metrics(gates, objective)
    expected, _, target = (float(metrics[name]) for name in metrics_of(quantity))
    now, goal = (f"{expected:.1f}", f"{target:.0f}") if quantity != "cost" else (f"{expected:.1%}", f"{target:.1%}")
    return f"{quantity} {now}" + (f" → {goal}" if target == target else "")


_STOPPED = "training was stopped from outside, perhaps by one of the callbacks"


class InterruptOnStop(Callback):
    """Interrupt a run at a signal, at ``trainer.max_time``, and where another callback stops a phase.

    Lightning would end the epoch, from where a run cannot resume bit-exactly. A checkpoint comes before the next step,
    the interruption after it. After ``EarlyStopping``, or when the gates have converged, the run goes on instead.
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
            raise Stopped(self._signal)
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
            raise Stopped(self._signals.number)
        self._restore()

    def _restore(self, *_: Any, **__: Any) -> None:
        """Restore signal handlers; after an error no checkpoint is saved, since the state may be inconsistent."""
        if self._signals is not None:
            self._signals.restore()

    on_exception = _restore


def check_completed(trainer: pl.Trainer, *, phase: str) -> None:
    """Raise ``Unfinished`` if a phase ended early, but not by converged gates or early stopping."""
    step, num_steps = trainer.global_step, trainer.max_steps
    if step < num_steps and end_reason(trainer) is None:
        raise Unfinished(phase, step=step, num_steps=num_steps, reason=_STOPPED)


def check_monitors(callbacks: Iterable[Callback], prepared: Prepared) -> None:
    """Raise ``InputError`` if validation lacks a metric of early stopping: Lightning would do so after the search."""
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
        if isinstance(callback, EarlyStopping) and (reason := _early_stop(callback, trainer)):
            return reason.removesuffix(" Signaling Trainer to stop.").rstrip(".")
    return None


def _early_stop(callback: EarlyStopping, trainer: pl.Trainer) -> str:
    """Return why Lightning's callback has ended a phase; an empty text if it has not."""
    if hasattr(callback, "stopping_reason_message"):
        return callback.stopping_reason_message or ""
    # Lightning 2.5 keeps no reason, and no epoch if it is the first one.
    value = trainer.callback_metrics.get(callback.monitor)
    limits = ((1, callback.stopping_threshold), (-1, callback.divergence_threshold))
    is_beyond = value is not None and (
        (callback.check_finite and not math.isfinite(value))
        or any(limit is not None and callback.monitor_op(sign * value, sign * limit) for sign, limit in limits)
    )
    is_stopped = is_beyond or callback.stopped_epoch or callback.wait_count >= max(1, callback.patience)
    return f"early stopping by {callback.monitor}" if is_stopped else ""
