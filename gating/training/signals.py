"""Being told to stop: by SIGTERM, as schedulers do it, by Ctrl-C, or by the end of the terminal.

Outside of training a run stops where it is. In training the signal is noted, so that the step is ended and a checkpoint
written first.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

__all__ = ["DeferredSignals", "Stopped", "Unfinished", "stop_on_signals"]

# The last one comes when a terminal is closed; not everywhere are there terminals.
_STOPS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name))


class Stopped(BaseException):
    """A signal has asked the run to stop. Not an ``Exception``: nothing on the way up is to go on in spite of it."""

    def __init__(self, number: int) -> None:
        """Args: ``number`` is that of the signal."""
        super().__init__(f"Stopped by {signal.Signals(number).name}")
        self.exit_code = 128 + number


class Unfinished(Stopped):
    """A training phase has ended before its last step without a signal; the run can go on, as after SIGTERM."""

    def __init__(self, phase: str, *, step: int, num_steps: int, reason: str) -> None:
        """Args: ``reason`` is why it ended, the others are for the message."""
        BaseException.__init__(self, f"The {phase} phase was interrupted after {step} of {num_steps} steps: {reason}")
        self.exit_code = 128 + signal.SIGTERM


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """Raise :class:`Stopped`, wherever the program is, at a signal that asks it to stop in a ``with`` block."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _stop) for number in _heeded()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class DeferredSignals:
    """Signals that have come in since a moment, instead of what they would have done.

    Attributes:
        stop: Number of the signal that asks to stop; 0 as long as none has.
        requeue: Number of the signal by which a scheduler gives notice; 0 as long as it has not.
    """

    def __init__(self) -> None:
        """Note signals from now on, until :meth:`end`."""
        self.stop = self.requeue = 0
        self._before: dict[int, Any] = {}
        if threading.current_thread() is not threading.main_thread():
            return
        for number in _heeded():
            self._before[number] = signal.signal(number, self._note_stop)
        # What Lightning does under SLURM to have a job queued again, in the middle of whatever is going on.
        if callable(signal.getsignal(signal.SIGUSR1)):
            self._before[signal.SIGUSR1] = signal.signal(signal.SIGUSR1, self._note_requeue)

    def end(self) -> None:
        """Let signals do again what they did before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def handle_requeue(self) -> None:
        """Do what the notice would have done when it came."""
        number, self.requeue = self.requeue, 0
        self._before[number](number, None)

    def _note_stop(self, number: int, frame: FrameType | None) -> None:
        if self.stop and number == signal.SIGINT:
            raise Stopped(number)  # Somebody who presses Ctrl-C twice does not want to wait.
        self.stop = number

    def _note_requeue(self, number: int, frame: FrameType | None) -> None:
        self.requeue = number


def _heeded() -> list[signal.Signals]:
    """Return the signals that stop a run; without those that whoever started the process wants to be ignored."""
    return [number for number in _STOPS if signal.getsignal(number) is not signal.SIG_IGN]


def _stop(number: int, _: FrameType | None) -> None:
    raise Stopped(number)
