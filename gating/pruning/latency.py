"""Timings of compact copies of a model, each in turns with the model, and the time that they may take."""

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gating.errors import InputError
from gating.gates import HeadGates
from gating.gates.hard_concrete import are_numbers
from gating.proof.outputs import evaluating
from gating.pruning.empty_layers import drop_passing_layers
from gating.pruning.prune import remove_in_copy

# Timings take this share of a run, within limits in seconds.
_SHARE_OF_RUN, _MIN_SECONDS, MAX_SECONDS = 0.05, 20.0, 120.0
# A pass that takes less time is warmed up by another one: the first also fills caches and chooses kernels.
_SHORT_PASS_S = 1.0

# Least time of one timing, as several slices of a scheduler, and the largest number of its forward passes.
_TIMING_SECONDS, _MAX_PASSES = 0.02, 20
# Whether a thread has a clock of its own; that of some systems moves in steps of 15 milliseconds.
_HAS_THREAD_CLOCK = time.get_clock_info("thread_time").resolution <= 1e-5
# Fewer ratios say nothing about their own error.
_LEAST_REPEATS = 3
# Digits of a latency, by which all that is computed from it agrees with what is shown; noise is ten times as large.
_DIGITS = 4


@dataclass(frozen=True)
class LatencyComparison:
    """Latency of a forward pass of two models, timed alternately: median seconds, with the digits of tables.

    ``error`` is the relative standard error of the speed-up, infinite below three repeats; ``words`` describe the
    batch, such as ``32 x 128 tokens, p95``.
    """

    before: float
    after: float
    repeats: int
    batch: str
    error: float = math.inf
    words: str = ""

    @property
    def speedup(self) -> float:
        """The ratio of the two medians; above 1, the second model is faster."""
        return self.before / self.after

    @property
    def gain(self) -> str:
        """The speed-up in words, such as ``1.25x as fast``; ``no difference`` within the noise."""
        if is_noise(self.speedup, self.error):
            return "no difference"
        # Of the milliseconds that tables show: of seconds, a last digit of 5 can be rounded the other way.
        before, after = (float(f"{1e3 * seconds:.{_DIGITS}g}") for seconds in (self.before, self.after))
        return f"{before / after:.2f}x as fast"


class TimeBudget:
    """Time for all timings of a run or of a command, of which each stage takes a part.

    Its seconds, and the rows of each timed batch, are None until :meth:`fit` has estimated the run.
    """

    def __init__(self, seconds: float | None = None) -> None:
        """Args: ``seconds`` is all of it; None for 5 % of the run, at least 20 and at most 120 seconds."""
        if seconds is not None and not (are_numbers(seconds) and seconds >= 0):
            raise InputError(f"max_seconds={seconds!r} is not a number of seconds: give 0 or more.")
        self.seconds, self.spent = seconds, 0.0
        self.rows: int | None = None

    def fit(
        self,
        model: nn.Module,
        batch: Mapping[str, Tensor],
        *,
        passes: int,
        run_seconds: Callable[[float], float] = lambda _: math.inf,
    ) -> dict[str, Tensor]:
        """Return a batch with as many of its rows as can be timed, all if possible; the last rows stay.

        The first call sets the time, of a run whose seconds follow from those of a pass, and the number of rows for
        later calls: all timings of a run have one shape. Timings are exact with some ``passes``.
        """
        sizes = {tensor.shape[0] for tensor in batch.values() if isinstance(tensor, Tensor) and tensor.ndim}
        if not sizes:
            raise InputError("batch has no tensors: give the keyword arguments of the model, such as input_ids.")
        # Tensors with different first dimensions cannot be taken apart.
        rows = sizes.pop() if len(sizes) == 1 else None
        if self.rows is None:
            start, last = time.perf_counter(), _last_rows(batch, rows and 1)
            with evaluating(model):
                one = time_pass(model, last)
                one = one if one > _SHORT_PASS_S else time_pass(model, last)
            self.spent += time.perf_counter() - start
            full = (rows or 1) * one
            if self.seconds is None:
                self.seconds = min(MAX_SECONDS, max(_MIN_SECONDS, _SHARE_OF_RUN * run_seconds(full)))
            is_short = passes * full <= self.seconds
            self.rows = (rows or 1) if is_short else max(1, int(self.seconds / (passes * one)))
        return _last_rows(batch, rows and self.rows)

    @contextmanager
    def stage(self, *, share: float = 1.0, longest: float = math.inf) -> Iterator[float]:
        """Yield the seconds of a share of the time that is left, and spend the time of the ``with`` block."""
        start, total = time.perf_counter(), MAX_SECONDS if self.seconds is None else self.seconds
        try:
            yield min(longest, share * max(0.0, total - self.spent))
        finally:
            self.spent += time.perf_counter() - start


class CopyTimer:
    """Timings of compact copies of a model, which share a time that begins when the timer is made.

    If there is time, each copy is timed ``repeats`` times or more, up to a relative standard error of ``precision``.
    """

    repeats, precision = 15, 0.007

    def __init__(self, model: nn.Module, batch: Mapping[str, Tensor], *, seconds: float, length: str = "") -> None:
        """Store the dense model, a batch on its device, the seconds for all copies, and words for the length."""
        self._model, self._batch, self._of_batch = model, batch, describe_batch(batch, length=length)
        self._end = time.perf_counter() + seconds
        self.timed: list[LatencyComparison] = []

    @property
    def left(self) -> float:
        """Seconds that are left, 0 at least."""
        return max(0.0, self._end - time.perf_counter())

    @property
    def affordable(self) -> float:
        """Number of copies whose speedups, with their errors, there is time for; not known, 0, before the first one."""
        if not self.timed:
            return 0.0
        # A copy takes no longer than the model.
        return self.left / (2 * (1 + _LEAST_REPEATS) * max(self.timed[-1].before, _TIMING_SECONDS))

    @property
    def error(self) -> float:
        """Largest relative standard error of the speedups so far; infinite if one was timed too few times."""
        return max((found.error for found in self.timed), default=math.inf)

    @property
    def words(self) -> str:
        """The timed batch and the error that was reached, such as ``8 x 107 tokens, ± 0.6 %``."""
        return f"{self._of_batch}, {margin(self.error)}"

    @torch.no_grad()
    def time_kept(self, gates: HeadGates, kept: Tensor, *, share: float) -> LatencyComparison:
        """Time a copy of the model with some gates kept, without empty layers, and the model in turns."""
        compact = remove_in_copy(self._model, gates, kept)
        drop_passing_layers(compact, self._batch)
        return self.time(compact, share=share)

    def try_choice(self, gates: HeadGates, kept: Tensor, *, share: float) -> tuple[float, float, bool]:
        """Return the speedup with some gates kept, its error, and whether there is no time for another copy."""
        found = self.time_kept(gates, kept, share=share)
        return found.speedup, found.error, self.affordable <= 1

    def print_closest(self, speedup: float) -> float:
        """Print the speedup so far that is closest to a wanted one, and return it."""
        reached = min((one.speedup for one in self.timed), key=lambda one: abs(one / speedup - 1))
        print(f"The choice is {reached:.2f} times as fast ({self.words}).", flush=True)
        return reached

    def time(self, compact: nn.Module, *, share: float = 1.0) -> LatencyComparison:
        """Time a copy and the model in turns, in evaluation mode and without gradients.

        A busy machine slows both of them. The timings continue until the speedup is precise, or have eight times their
        least number, or until the share of the time that is left is over; one pass of the copy is timed in any case.
        """
        seconds, before = share * self.left, self.timed[-1].before if self.timed else 0.0
        with evaluating(self._model), evaluating(compact):
            if seconds < 2 * before:
                # There is no time for a pass of both, and that of the model is known.
                times = [(before, time_pass(compact, self._batch))]
            else:
                times = self._repeat(compact, end=time.perf_counter() + seconds)
        found = LatencyComparison(
            before=float(f"{statistics.median(first for first, _ in times):.{_DIGITS}g}"),
            after=float(f"{statistics.median(second for _, second in times):.{_DIGITS}g}"),
            repeats=len(times),
            batch=_shape_in_words(next(iter(self._batch.values()))),
            error=_error_of_ratio(times),
            words=self._of_batch,
        )
        self.timed.append(found)
        return found

    def _repeat(self, compact: nn.Module, *, end: float) -> list[tuple[float, float]]:
        """Return timings of the model and a copy, at least one; ``end`` is the deadline."""
        last = self._time_both(compact, passes=1)
        # Slow passes are not much slower at first; others need a warm-up, which also decides the passes of a timing.
        times = [last] if sum(last) > _SHORT_PASS_S else []
        if not times and time.perf_counter() + sum(last) <= end:
            last = self._time_both(compact, passes=1)
        passes = math.ceil(_TIMING_SECONDS / max(min(last), _TIMING_SECONDS / _MAX_PASSES))
        while not self._is_enough(times) and time.perf_counter() + passes * sum(last) <= end:
            last = self._time_both(compact, passes=passes)
            times.append(last)
        # Without time for another one, the warm-up is the timing.
        return times or [last]

    def _time_both(self, compact: nn.Module, *, passes: int) -> tuple[float, float]:
        """Return the mean seconds of some passes of the model, and of as many of a copy.

        On a busy machine, the scheduler would interrupt the slower of two passes of a millisecond at nearly every turn,
        and the faster one at few: a timing takes several passes of small models.
        """
        first = sum(time_pass(self._model, self._batch) for _ in range(passes)) / passes
        return first, sum(time_pass(compact, self._batch) for _ in range(passes)) / passes

    def _is_enough(self, times: list[tuple[float, float]]) -> bool:
        if len(times) < self.repeats:
            return False
        return len(times) >= 8 * self.repeats or _error_of_ratio(times) <= self.precision


@torch.inference_mode()
def time_pass(model: nn.Module, batch: Mapping[str, Tensor]) -> float:
    """Return the seconds of a forward pass, which the model computes in the mode that it is in.

    With one thread on the CPU they are the thread's own: a pass that waits for a busy processor is none the slower. A
    module without parameters is a graph, whose runtime may have threads of its own.
    """
    first = next(model.parameters(), None)
    device = torch.device("cpu") if first is None else first.device
    is_cpu, is_own = device.type == "cpu", first is not None and torch.get_num_threads() == 1
    wait = (lambda _: None) if is_cpu else torch.accelerator.synchronize
    clock = time.thread_time if is_cpu and is_own and _HAS_THREAD_CLOCK else time.perf_counter
    wait(device)
    start = clock()
    model(**batch)
    wait(device)
    return clock() - start


def _last_rows(batch: Mapping[str, Tensor], rows: int | None) -> dict[str, Tensor]:
    """Return the last rows of each tensor of a batch; None for all."""
    if rows is None:
        return dict(batch)
    return {name: one[-rows:] if isinstance(one, Tensor) and one.ndim else one for name, one in batch.items()}


def margin(error: float) -> str:
    """Return a relative standard error in words; it is infinite if it is not known."""
    return f"± {100 * error:.1f} %" if math.isfinite(error) else "± unknown"


def is_noise(speedup: float, error: float) -> bool:
    """Return whether a speed-up rounds to 1, or is within two relative standard errors of it, if known.

    >>> is_noise(1.05, 0.03), is_noise(1.05, 0.01), is_noise(1.05, math.inf)
    (True, False, False)
    """
    return abs(speedup - 1) < max(0.005, 2 * error if math.isfinite(error) else 0.0)


def describe_batch(batch: Mapping[str, Tensor], *, length: str = "") -> str:
    """Return the keyword arguments of a model in words, with those for the length of its texts."""
    if "input_ids" not in batch:
        name, tensor = next(iter(batch.items()))
        return f"{_shape_in_words(tensor)} {name.replace('_', ' ')}"
    words = f"{_shape_in_words(batch['input_ids'])} tokens"
    if "decoder_input_ids" in batch:
        words += f" and {_shape_in_words(batch['decoder_input_ids'])} of the decoder"
    return f"{words}, {length}" if length else words


def _shape_in_words(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape))


def _error_of_ratio(times: list[tuple[float, float]]) -> float:
    """Return the relative standard error of the median ratio, from the median absolute deviation."""
    if len(times) < _LEAST_REPEATS:
        return math.inf
    ratios = [first / second for first, second in times]
    median = statistics.median(ratios)
    deviation = 1.4826 * statistics.median(abs(ratio - median) for ratio in ratios)
    # The median of normal deviates has 1.2533 times the standard error of the mean.
    return float(1.2533 * deviation / len(ratios) ** 0.5 / median)
