"""Timings of compact copies of a model, each beside the model and within a stage of time."""

import math
import statistics
import time
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from gating.gates import HeadGates
from gating.proof.outputs import evaluating
from gating.pruning.empty_layers import drop_passing_layers
from gating.pruning.latency import comparison
from gating.pruning.latency.comparison import (
    SHORT_PASS_S,
    LatencyComparison,
    describe_batch,
    margin,
    shape_in_words,
)
from gating.pruning.latency.time_budget import Stage
from gating.pruning.prune import remove_in_copy

__all__ = ["PRECISION", "CopyTimer"]

# Relative standard error of the timings that a budget is made from.
PRECISION = 0.007
# Number of timings before those that count; they decide the passes of a timing.
_WARM_UP = 2
# Least time of one timing, as several slices of a scheduler, and the largest number of its forward passes.
_TIMING_SECONDS, _MAX_PASSES = 0.02, 20
# Fewer ratios say nothing about their own error.
_LEAST_REPEATS = 3


class CopyTimer:
    """Timings of compact copies of a model.

    Attributes:
        repeats: Least number of timings of each copy, if there is time.
        timed: The comparisons so far.
    """

    repeats = 15

    def __init__(
        self,
        model: nn.Module,
        batch: Mapping[str, Tensor],
        *,
        stage: Stage,
        length: str = "",
        precision: float = PRECISION,
    ) -> None:
        """Store the dense model, the batch and the time.

        Args:
            model: The dense model.
            batch: Keyword arguments of the model, on its device.
            stage: The time for all copies.
            length: Words for the length of the texts, such as ``p95``.
            precision: Relative standard error up to which a copy is timed, if there is time.
        """
        self._model = model
        self._batch = batch
        self._stage = stage
        self._length = length
        self._precision = precision
        self.timed: list[LatencyComparison] = []
        self._seconds_of_repeat = 0.0

    @property
    def affordable(self) -> float:
        """Number of copies whose speedups, with their errors, there is time for; not known, 0, before the first one."""
        if not self.timed:
            return 0.0
        seconds = (1 + _LEAST_REPEATS) * self._seconds_of_repeat
        return self._stage.left / seconds if seconds else math.inf

    @property
    def is_over(self) -> bool:
        """Whether there is no time to know another speedup and its error; copies that are needed are timed once."""
        return self.affordable <= 1 if self.timed else self._stage.left <= 0

    @property
    def error(self) -> float:
        """Largest relative standard error of the speedups so far; infinite if one was timed too few times."""
        return max((found.error for found in self.timed), default=math.inf)

    @property
    def words(self) -> str:
        """The timed batch and the error that was reached, such as ``8 x 107 tokens, ± 0.6 %``."""
        return f"{describe_batch(self._batch, length=self._length)}, {margin(self.error)}"

    def shortfall(self, setting: str) -> str:
        """Return the sentence that the timings are less exact than wanted, and which setting gives them more time."""
        repeats = min(found.repeats for found in self.timed)
        return (
            f"The timings are less exact than wanted, {margin(self.error)} in place of {margin(self._precision)}, "
            f"after {repeats} repeat(s): give a larger {setting}, or time on a machine that is less busy."
        )

    @torch.no_grad()
    def time_kept(self, gates: HeadGates, kept: Tensor, *, what: str, share: float) -> LatencyComparison:
        """Time a copy of the model with some gates kept, without empty layers, and the model in turns.

        Args:
            gates: Gates for the model, which are not attached to it now.
            kept: Mask of the gates to keep, ``[num_gates]``.
            what: The copy in words, as in :meth:`time`.
            share: Its share of the time, likewise.
        """
        compact = remove_in_copy(self._model, gates, kept)
        drop_passing_layers(compact, self._batch)
        return self.time(compact, what=what, share=share)

    def time(self, compact: nn.Module, *, what: str, share: float = 1.0) -> LatencyComparison:
        """Time a copy and the model in turns, in evaluation mode and without gradients.

        A busy machine slows both of them. The timings continue until the speedup is precise, or have eight times their
        least number, or until the time is over; one pass of the copy is timed in any case.

        Args:
            compact: The copy, on the device of the model.
            what: The copy in words, for the progress bar.
            share: The share of the time that is left which it may take.
        """
        self._stage.show(what)
        seconds, start = share * self._stage.left, time.perf_counter()
        end = start + seconds
        before = self.timed[-1].before if self.timed else 0.0
        with evaluating(self._model), evaluating(compact):
            if seconds < 2 * before:
                # There is no time for a pass of both, and that of the model is known.
                times = [(before, comparison.time_pass(compact, self._batch))]
            else:
                times = self._repeat(compact, end=end)
        elapsed = time.perf_counter() - start
        found = LatencyComparison(
            before=statistics.median(first for first, _ in times),
            after=statistics.median(second for _, second in times),
            repeats=len(times),
            batch=shape_in_words(next(iter(self._batch.values()))),
            error=_error_of_ratio(times),
            words=describe_batch(self._batch, length=self._length),
        )
        self.timed.append(found)
        # A copy takes no longer than the model.
        model_share = found.before / (found.before + found.after)
        self._seconds_of_repeat = max(self._seconds_of_repeat, 2 * model_share * elapsed / len(times))
        return found

    def _repeat(self, compact: nn.Module, *, end: float) -> list[tuple[float, float]]:
        """Return timings of the model and a copy, at least one; ``end`` is the deadline."""

        def fits(timings: list[tuple[float, float]], passes: int = 1) -> bool:
            return not timings or time.perf_counter() + passes * sum(timings[-1]) <= end

        def is_slow(timings: list[tuple[float, float]]) -> bool:
            return bool(timings) and sum(timings[-1]) > SHORT_PASS_S

        # Slow passes are not much slower at first, and need no warm-up apart.
        warm: list[tuple[float, float]] = []
        while len(warm) < _WARM_UP and fits(warm) and not is_slow(warm):
            warm.append(self._time_both(compact, passes=1))
        fastest = min((seconds for pair in warm for seconds in pair), default=1.0)
        passes = math.ceil(_TIMING_SECONDS / max(fastest, _TIMING_SECONDS / _MAX_PASSES))
        times = [*warm] if is_slow(warm) else []
        while not self._is_enough(times) and fits(times or warm, passes):
            times.append(self._time_both(compact, passes=passes))
        # Without time for another one, the warm-up is the timing.
        return times or warm[-1:]

    def _time_both(self, compact: nn.Module, *, passes: int) -> tuple[float, float]:
        """Return the mean seconds of some passes of the model, and of as many of a copy.

        On a busy machine, the scheduler would interrupt the slower of two passes of a millisecond at nearly every turn,
        and the faster one at few: a timing takes several passes of small models.
        """
        first = sum(comparison.time_pass(self._model, self._batch) for _ in range(passes)) / passes
        second = sum(comparison.time_pass(compact, self._batch) for _ in range(passes)) / passes
        self._stage.tick()
        return first, second

    def _is_enough(self, times: list[tuple[float, float]]) -> bool:
        if len(times) < self.repeats:
            return False
        return len(times) >= 8 * self.repeats or _error_of_ratio(times) <= self._precision


def _error_of_ratio(times: list[tuple[float, float]]) -> float:
    """Return the relative standard error of the median ratio, from the median absolute deviation."""
    if len(times) < _LEAST_REPEATS:
        return math.inf
    ratios = [first / second for first, second in times]
    median = statistics.median(ratios)
    deviation = 1.4826 * statistics.median(abs(ratio - median) for ratio in ratios)
    # The median of normal deviates has 1.2533 times the standard error of the mean.
    return float(1.2533 * deviation / len(ratios) ** 0.5 / median)
