"""Signals that stop a run: SIGTERM from schedulers, SIGINT from Ctrl-C, SIGHUP from a closed terminal.

Outside of training a signal raises :class:`Stopped` at once. During training it is deferred until the current step is
complete and a checkpoint is written.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

__all__ = ["DeferredSignals", "Stopped", "Unfinished", "stop_on_signals"]

# Windows has no SIGHUP.
_STOPS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name))


class Stopped(BaseException):
    """A signal stopped the run. A ``BaseException``, so that no ``except Exception`` swallows it.

    Attributes:
        exit_code: Exit code of the process, 128 + signal number.
    """

    def __init__(self, number: int) -> None:
        """Args: ``number`` is the signal number."""
        super().__init__(f"Stopped by {signal.Signals(number).name}")
        self.exit_code = 128 + number


class Unfinished(Stopped):
    """A training phase ended before its last step without a signal; the run can be resumed, as after SIGTERM."""

    def __init__(self, phase: str, *, step: int, num_steps: int, reason: str) -> None:
        """Args: ``phase``, ``step``, ``num_steps`` and ``reason`` appear in the message."""
        BaseException.__init__(self, f"The {phase} phase was interrupted after {step} of {num_steps} steps: {reason}")
        self.exit_code = 128 + signal.SIGTERM


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """Raise :class:`Stopped` when SIGTERM, SIGINT or SIGHUP arrives within a ``with`` block.

    Python runs signal handlers in the main thread only; in other threads the block changes nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _stop) for number in _handled_signals()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class DeferredSignals:
    """Signals received since creation; their handlers are replaced until :meth:`restore`.

    Attributes:
        stop: Number of the received stop signal, or 0.
        requeue: SIGUSR1 if a scheduler has announced the end of the job, else 0.
    """

    def __init__(self) -> None:
        self.stop = self.requeue = 0
        self._before: dict[int, Any] = {}
        if threading.current_thread() is not threading.main_thread():
            return
        for number in _handled_signals():
            self._before[number] = signal.signal(number, self._defer_stop)
        # Lightning's SLURM handler writes a checkpoint and requeues the job, also in the middle of a step.
        if callable(signal.getsignal(signal.SIGUSR1)):
            self._before[signal.SIGUSR1] = signal.signal(signal.SIGUSR1, self._defer_requeue)

    def restore(self) -> None:
        """Restore the previous signal handlers."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def handle_requeue(self) -> None:
        """Call the previous handler of the deferred SIGUSR1."""
        number, self.requeue = self.requeue, 0
        self._before[number](number, None)

    def _defer_stop(self, number: int, frame: FrameType | None) -> None:
        if self.stop and number == signal.SIGINT:
            raise Stopped(number)  # A second Ctrl-C stops at once.
        self.stop = number

    def _defer_requeue(self, number: int, frame: FrameType | None) -> None:
        self.requeue = number


def _handled_signals() -> list[signal.Signals]:
    """Return the stop signals, except those that the parent process set to be ignored, as ``nohup`` does."""
    return [number for number in _STOPS if signal.getsignal(number) is not signal.SIG_IGN]


def _stop(number: int, _: FrameType | None) -> None:
    raise Stopped(number)
