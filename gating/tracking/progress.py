"""Progress of the steps of a run: a bar in a terminal; in a log, a line wherever it would be silent for long."""

import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cache
from typing import Any, TypeVar

from tqdm import tqdm
from typing_extensions import Self

from gating.distributed.collectives import is_rank_zero

Item = TypeVar("Item")

# Seconds without a line about progress after which a log gets one.
_QUIET_S = 15.0
# Steps that have begun and not ended, the innermost last.
_running: list["Progress"] = []
# Time of the last line; and where lines go, because some steps redirect what exporters print.
_last = 0.0
_stream: Any = None


class Progress:
    """The progress of a step, in a ``with`` block or from ``start`` to ``stop``; other steps may be parts of it.

    A log gets lines of the innermost step, from another thread, because a step may last long within one call.

    Attributes:
        done: Number of units that are done.
    """

    def __init__(
        self, title: str, total: int | None = None, *, unit: str = "it", done: int = 0, seconds: float | None = None
    ) -> None:
        """Describe a step: ``total`` is its number of units, ``seconds`` its longest time, as far as they are known."""
        self.done = self._first = done
        self._title, self._total, self._unit, self._seconds = title, total, unit, seconds
        self._status = ""
        self._bar: tqdm[Any] | None = None

    def start(self) -> Self:
        """Begin, and return the object itself."""
        global _last, _stream
        self._began = time.monotonic()
        if not _running:
            _last, _stream = self._began, sys.stdout
        _running.append(self)
        if not is_rank_zero():
            return self
        _start_telling()
        if self._total is not None and sys.stdout is not None and sys.stdout.isatty():
            options = {"unit": self._unit, "file": sys.stdout, "dynamic_ncols": True, "leave": False}
            self._bar = tqdm(desc=self._title, total=self._total, initial=self.done, **options)
        return self

    def update(self, number: int = 1, *, status: str | None = None) -> None:
        """Count units that were done; ``status`` are words about the present state, which stay until others come."""
        self.done += number
        self._status = self._status if status is None else status
        if self._bar is not None:
            self._bar.set_postfix_str(self._status, refresh=False)
            self._bar.update(number)

    def stop(self, *_: object) -> None:
        """End; a second time does nothing."""
        if self in _running:
            _running.remove(self)
        if self._bar is not None:
            self._bar.close()

    __enter__, __exit__ = start, stop

    def time_left(self) -> str:
        """Return the time of the other units at the pace of those so far, as in ``03:20``; empty if it is not known."""
        elapsed, counted = time.monotonic() - self._began, self.done - self._first
        left = 0.0 if self._seconds is None else self._seconds - elapsed
        if self._total is not None and counted:
            left = elapsed / counted * (self._total - self.done)
        return str(tqdm.format_interval(left)) if left > 0 else ""

    def line(self) -> str:
        """Return title, progress, time left and status, as in ``search: 120 of 450 steps, 03:20 left, loss 0.512``."""
        count = "" if self._total is None else f"{self.done:,} of {self._total:,} {self._unit}"
        left = self.time_left()
        pace = f"{left} left" if left else f"{tqdm.format_interval(time.monotonic() - self._began)} so far"
        return f"{self._title}: {', '.join(part for part in (count, pace, self._status) if part)}"


def watched(items: Iterable[Item], *, title: str, total: int, unit: str) -> Iterator[Item]:
    """Yield items, ``total`` of a unit, and show their progress under a title."""
    with Progress(title, total, unit=unit) as progress:
        for item in items:
            yield item
            progress.update()


def advance(number: int) -> None:
    """Count units of the innermost step, in a function that cannot hold it because ``datasets`` makes a key of it."""
    for innermost in _running[-1:]:
        innermost.update(number)


def tell(line: str) -> None:
    """Print a line above the bars, at once, on rank 0."""
    global _last
    if is_rank_zero():
        _last, stream = time.monotonic(), _stream if _running else sys.stdout
        # The stream may be missing or closed. In one piece, because another thread may print, too.
        with suppress(AttributeError, OSError, ValueError), tqdm.external_write_mode(file=stream):
            stream.write(f"{line}\n")
            stream.flush()


@cache
def _start_telling() -> None:
    """Start the thread that prints lines into a log, once in a process."""
    threading.Thread(target=_tell_for_ever, name="progress", daemon=True).start()


def _tell_for_ever() -> None:
    while True:
        time.sleep(_QUIET_S / 15)
        for innermost in _running[-1:]:
            if innermost._bar is None and time.monotonic() - _last >= _QUIET_S:
                tell(innermost.line())
