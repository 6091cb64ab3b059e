"""Signals that stop a process: SIGTERM or SIGUSR1 from schedulers, SIGINT from Ctrl-C, SIGHUP from a closed terminal.

A signal raises :class:`Stopped` at once, so that files in the making are removed; in training it waits for the end of
the step and a checkpoint.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

# Windows has not all. On SLURM, Lightning would write a checkpoint at SIGUSR1 in the middle of a step.
_NAMES = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1")
_STOPS = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))


class Stopped(SystemExit):
    """A signal stopped the process. A ``SystemExit``, so that no ``except Exception`` swallows it."""

    def __init__(self, number: int, message: str | None = None) -> None:
        super().__init__(message or f"Stopped by {signal.Signals(number).name}")
        self.code = self.exit_code = 128 + number


class Unfinished(Stopped):
    """A training phase ended before its last step without a signal; the run can be resumed, as after SIGTERM."""

    def __init__(self, phase: str, *, step: int, num_steps: int, reason: str) -> None:
        message = f"The {phase} phase was interrupted after {step} of {num_steps} steps: {reason}"
        super().__init__(signal.SIGTERM, message)


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """Raise :class:`Stopped` at a signal, in the main thread only; ignored signals stay so, as under ``nohup``."""

    def stop(number: int, _: FrameType | None) -> None:
        raise Stopped(number)

    before = _replace_handlers(stop)
    try:
        yield
    finally:
        _restore_handlers(before)


class DeferredSignals:
    """Signals received since creation, the last one in ``number``; handlers are replaced until :meth:`restore`."""

    def __init__(self) -> None:
        self.number = 0
        self._before = _replace_handlers(self._defer)

    def restore(self) -> None:
        """Restore the previous signal handlers."""
        _restore_handlers(self._before)
        self._before = {}

    def _defer(self, number: int, _: FrameType | None) -> None:
        if self.number and number == signal.SIGINT:
            raise Stopped(number)  # A second Ctrl-C stops at once.
        self.number = self.number or number


def _replace_handlers(handler: Any) -> dict[int, Any]:
    """Set a handler of the stop signals that are not ignored, and return the previous ones; {} in other threads."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    numbers = [number for number in _STOPS if signal.getsignal(number) is not signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in numbers}


def _restore_handlers(handlers: dict[int, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)
