"""Time that timings may take: a budget for all of them, and its stages, with a progress bar in terminals."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from torch import Tensor, nn

from gating.errors import InputError
from gating.pruning.latency.comparison import seconds_of_pass

if TYPE_CHECKING:
    from rich.progress import Progress

__all__ = ["LatencySettings", "Length", "MAX_SECONDS", "Stage", "TimeBudget"]

# Timings take this share of a run, within limits in seconds.
_SHARE_OF_RUN, _MIN_SECONDS, MAX_SECONDS = 0.05, 20.0, 120.0
# A bar is redrawn after so many seconds, between two passes.
_REDRAW_S = 0.25


class Stage:
    """A part of the time for timings, which begins when it is made.

    Attributes:
        seconds: Its time; passes that are needed in any case can exceed it.
    """

    def __init__(self, seconds: float, bar: "Progress", *, title: str) -> None:
        """Args: ``bar`` shows the time, and ``title`` is the name of the stage in it."""
        self.seconds = seconds
        self._start = self._drawn = time.perf_counter()
        self._bar = bar
        self._task = bar.add_task(title, total=seconds, what="", left="")

    @property
    def elapsed(self) -> float:
        """Seconds since the stage began."""
        return time.perf_counter() - self._start

    @property
    def left(self) -> float:
        """Seconds that are left, 0 at least."""
        return max(0.0, self.seconds - self.elapsed)

    def show(self, what: str) -> None:
        """Show the name of the next timing in the bar."""
        self._bar.update(self._task, what=what)
        self._draw()

    def tick(self) -> None:
        """Redraw the bar, unless it was redrawn just now."""
        if time.perf_counter() - self._drawn >= _REDRAW_S:
            self._draw()

    def _draw(self) -> None:
        minutes, seconds = divmod(math.ceil(self.left), 60)
        self._bar.update(self._task, completed=self.elapsed, left=f"{minutes}:{seconds:02d}")
        self._bar.refresh()
        self._drawn = time.perf_counter()


class TimeBudget:
    """Time for all timings of a run or of a command, of which each stage takes a part.

    Attributes:
        seconds: All of the time; None until :meth:`fit` has estimated the run.
        spent: Seconds that have been taken.
    """

    def __init__(self, seconds: float | None = None) -> None:
        """Args: ``seconds`` is all of it; None for 5 % of the run, at least 20 and at most 120 seconds."""
        self.seconds = seconds
        self.spent = 0.0
        self._rows: int | None = None

    @property
    def is_fitted(self) -> bool:
        """Whether :meth:`fit` has set the time and the number of rows."""
        return self._rows is not None

    def fit(
        self,
        model: nn.Module,
        batch: Mapping[str, Tensor],
        *,
        passes: int,
        run_seconds: Callable[[float], float] | None = None,
    ) -> dict[str, Tensor]:
        """Return a batch with as many of its rows as can be timed, all if possible; the last rows stay.

        The first call sets the time, and the number of rows for later calls: all timings of a run have one shape.

        Args:
            model: The dense model.
            batch: Its keyword arguments.
            passes: Number of forward passes that the timings need to be exact.
            run_seconds: Function from the seconds of a pass of the batch to those of the run; None for the most time.
        """
        rows = _num_rows(batch)
        if self._rows is None:
            start = time.perf_counter()
            one = seconds_of_pass(model, _last_rows(batch, 1))
            self.spent += time.perf_counter() - start
            full = rows * one
            if self.seconds is None:
                run = math.inf if run_seconds is None else run_seconds(full)
                self.seconds = min(MAX_SECONDS, max(_MIN_SECONDS, _SHARE_OF_RUN * run))
            self._rows = rows if passes * full <= self.seconds else max(1, int(self.seconds / (passes * one)))
        return _last_rows(batch, min(rows, self._rows))

    @contextmanager
    def stage(self, title: str, *, share: float = 1.0, longest: float = math.inf) -> Iterator[Stage]:
        """Take a share of the time that is left, in a ``with`` block; a terminal shows a bar.

        Args:
            title: Name of the stage in the bar.
            share: The share.
            longest: Largest number of seconds that it may have.
        """
        total = MAX_SECONDS if self.seconds is None else self.seconds
        seconds = min(longest, share * max(0.0, total - self.spent))
        bar = _bar()
        stage = Stage(seconds, bar, title=title)
        try:
            with bar:
                yield stage
        finally:
            self.spent += stage.elapsed


def _bar() -> "Progress":
    """Return a progress bar that is redrawn between passes alone: a thread would disturb the timings."""
    # The package itself is imported without rich.
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    console = Console()
    return Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=30),
        TextColumn("at most {task.fields[left]} left  {task.fields[what]}"),
        console=console,
        auto_refresh=False,
        transient=True,
        disable=not console.is_terminal,
    )


def _num_rows(batch: Mapping[str, Tensor]) -> int:
    """Return the number of rows that can be taken apart; 1 if tensors have different first dimensions.

    Raises:
        InputError: There are no tensors.
    """
    sizes = {tensor.shape[0] for tensor in batch.values() if isinstance(tensor, Tensor) and tensor.ndim}
    if not sizes:
        raise InputError("batch has no tensors: give the keyword arguments of the model, such as input_ids.")
    return sizes.pop() if len(sizes) == 1 else 1


def _last_rows(batch: Mapping[str, Tensor], rows: int) -> dict[str, Tensor]:
    if _num_rows(batch) <= rows:
        return dict(batch)
    return {
        name: tensor[-rows:] if isinstance(tensor, Tensor) and tensor.ndim else tensor for name, tensor in batch.items()
    }


# A length of the data, or a number of tokens.
Length = Literal["median", "p95", "max"] | int


@dataclass(frozen=True)
class LatencySettings:
    """Settings of the timings of a run.

    Attributes:
        batch_size: Number of examples in the timed batch.
        length: Length of its texts in tokens: the ``median`` of the evaluated data, its 95th percentile (``p95``), its
            longest (``max``), or a number.
        max_seconds: Seconds that all timings of a run may take together; None for 5 % of the run, at least 20 and at
            most 120 seconds.
        price_blocks: Whether a search knows that a block takes time as long as anything is left in it; otherwise that
            time is a part of its units' costs.

    Raises:
        InputError: A number is not positive.
    """

    batch_size: int = 8
    length: Length = "p95"
    max_seconds: float | None = None
    price_blocks: bool = False

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise InputError(f"batch_size={self.batch_size}: a batch has at least one example.")
        if isinstance(self.length, int) and self.length < 1:
            raise InputError(f"length={self.length}: a text has at least one token. Give median, p95, max or a number.")
        if self.max_seconds is not None and not 0 < self.max_seconds < float("inf"):
            raise InputError(f"max_seconds={self.max_seconds}: give a number of seconds above 0, or null.")
