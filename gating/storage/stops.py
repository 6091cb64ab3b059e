"""Signals that end a process while files are written."""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType

__all__ = ["deferring_signals", "exiting_on_signals"]

# Windows has no SIGHUP.
_STOPS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGINT") if hasattr(signal, name))


@contextmanager
def exiting_on_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end a ``with`` block by ``SystemExit``, so that it removes its unfinished files.

    Signals that a program handles or ignores are left to it. Python runs handlers in the main thread only; in other
    threads the block changes nothing.

    Raises:
        SystemExit: A signal has come; the exit code is 128 + its number.
    """
    with deferring_signals() as passing, passing():
        yield


@contextmanager
def deferring_signals() -> Iterator[Callable[[], AbstractContextManager[None]]]:
    """Let signals wait for the end of a ``with`` block, so that none ends it between two steps that belong together.

    At its end they do what they do in :func:`exiting_on_signals`.

    Yields:
        Function that returns the context manager of a part of the block which a signal ends at once.
    """
    is_main = threading.current_thread() is threading.main_thread()
    handlers = {number: signal.getsignal(number) for number in _STOPS if is_main}
    # Neither ignored ones nor those that another language handles.
    handlers = {number: found for number, found in handlers.items() if callable(found) or found is signal.SIG_DFL}
    came: list[int] = []
    waits = True

    def handle(number: int, frame: FrameType | None) -> None:
        handler = handlers[number]
        if waits:
            came.append(number)
        elif callable(handler):
            handler(number, frame)
        else:
            sys.exit(128 + number)

    @contextmanager
    def passing() -> Iterator[None]:
        nonlocal waits
        try:
            waits = False
            while came:
                handle(came.pop(0), None)
            yield
        finally:
            waits = True

    try:
        for number in handlers:
            signal.signal(number, handle)
        yield passing
    finally:
        waits = False
        for number, handler in handlers.items():
            signal.signal(number, handler)
        while came:
            handle(came.pop(0), None)
