"""Signals that end a process while files are written."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["exiting_on_signals"]

# Windows has no SIGHUP.
_STOPS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))


@contextmanager
def exiting_on_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end a ``with`` block by ``SystemExit``, so that it removes what it has begun to write.

    Signals that a program handles or ignores are left to it. Python runs handlers in the main thread only; in other
    threads the block changes nothing.

    Raises:
        SystemExit: A signal has come; the exit code is 128 + its number.
    """
    is_main = threading.current_thread() is threading.main_thread()
    numbers = [number for number in _STOPS if is_main and signal.getsignal(number) is signal.SIG_DFL]
    for number in numbers:
        signal.signal(number, _exit)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


def _exit(number: int, _: FrameType | None) -> None:
    sys.exit(128 + number)
