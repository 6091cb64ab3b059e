"""Timings of compact copies of a model, each beside the model and within a stage of time."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from gating.gates import HeadGates
from gating.pruning.latency.comparison import LEAST_REPEATS, LatencyComparison, compare_latency, describe_batch, margin
from gating.pruning.latency.time_budget import Stage
from gating.pruning.prune import remove_in_copy

__all__ = ["PRECISION", "CopyTimer"]

# Relative standard error of the timings that a budget is made from.
PRECISION = 0.007


class CopyTimer:
    """Timings of compact copies of a model.

    Attributes:
        timed: The comparisons so far.
    """

    def __init__(
        self,
        model: nn.Module,
        batch: Mapping[str, Tensor],
        *,
        stage: Stage,
        repeats: int = 15,
        length: str = "",
        precision: float = PRECISION,
    ) -> None:
        """Store the dense model, the batch and the time.

        Args:
            model: The dense model.
            batch: Keyword arguments of the model, on its device.
            stage: The time for all copies.
            repeats: Least number of timings of each copy, if there is time.
            length: Words for the length of the texts, such as ``p95``.
            precision: Relative standard error up to which a copy is timed, if there is time.
        """
        self._model = model
        self._batch = batch
        self._stage = stage
        self._repeats = repeats
        self._length = length
        self._precision = precision
        self.timed: list[LatencyComparison] = []

    @property
    def is_over(self) -> bool:
        """Whether there is no time to know another speedup and its error; copies that are needed are timed once."""
        passes = 2 * (1 + LEAST_REPEATS)
        return self._stage.left <= (passes * self.timed[-1].before if self.timed else 0)

    @property
    def error(self) -> float:
        """Largest relative standard error of the speedups so far; infinite if one was timed too few times."""
        return max((found.error for found in self.timed), default=math.inf)

    @property
    def words(self) -> str:
        """The timed batch and the error that was reached, such as ``8 x 107 tokens, ± 0.6 %``."""
        return f"{describe_batch(self._batch, length=self._length)}, {margin(self.error)}"

    def shortfall(self, setting: str) -> str:
        """Return the sentence that the timings are less exact than wanted.

        Args:
            setting: Name of the setting or argument of the time.
        """
        repeats = min(found.repeats for found in self.timed)
        return (
            f"The timings are less exact than wanted, {margin(self.error)} in place of {margin(self._precision)}, "
            f"after {repeats} repeat(s): give a larger {setting}, or time on a machine that is less busy."
        )

    @torch.no_grad()
    def time_kept(self, gates: HeadGates, kept: Tensor, *, what: str, share: float) -> LatencyComparison:
        """Time a copy of the model with some gates kept, and the model in turns.

        Args:
            gates: Gates for the model, which are not attached to it now.
            kept: Mask of the gates to keep, ``[num_gates]``.
            what: As in :meth:`time`.
            share: As in :meth:`time`.
        """
        return self.time(remove_in_copy(self._model, gates, kept), what=what, share=share)

    def time(self, compact: nn.Module, *, what: str, share: float = 1.0) -> LatencyComparison:
        """Time a copy and the model in turns.

        Args:
            compact: The copy.
            what: The copy in words, for the progress bar.
            share: The share of the time that is left which it may take.
        """
        self._stage.show(what)
        found = compare_latency(
            self._model,
            compact,
            self._batch,
            repeats=self._repeats,
            precision=self._precision,
            seconds=share * self._stage.left,
            before_seconds=self.timed[-1].before if self.timed else None,
            length=self._length,
            on_timing=self._stage.tick,
        )
        self.timed.append(found)
        return found
