"""Closing heads for good, some in each round, by a ranking: what importance, magnitude and chance have in common."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, distributed

from gating.errors import InputError
from gating.gates import HeadGates
from gating.gates.full_precision import FullPrecision
from gating.objectives.baselines.mask import HeadMask
from gating.objectives.budget import HeadBudget
from gating.objectives.per_part import BudgetPart
from gating.objectives.schedule import BudgetSchedule

__all__ = ["HeadRanking", "IterativePruning"]


class HeadRanking(Protocol):
    """Says which heads deserve to stay. A module: what it has to remember is in its buffers."""

    def attach(self, gates: HeadGates) -> None:
        """Connect to the gates before training."""
        ...

    def scores(self, gates: HeadGates) -> Tensor:
        """Return a score for a head of each gate, ``[num_gates]``; heads with small ones close first."""
        ...

    def start_over(self, gates: HeadGates) -> None:
        """Forget what was collected so far: a round has ended, or the first one begins."""
        ...


class IterativePruning(FullPrecision):
    """Close the heads that rank last, in rounds along the schedule, and never open them again (Michel et al. 2019).

    Gates are on or off; weights are trained on between the rounds. Each round closes the same share of all heads,
    10 % in the paper, and the last one what is left over the budget, so that it is met exactly.
    """

    def __init__(
        self,
        ranking: HeadRanking,
        *,
        num_heads: int | Mapping[str, int] | None = None,
        keep: float | Mapping[str, float] | None = None,
        min_per_layer: int = 0,
        share_per_round: float = 0.1,
        schedule: BudgetSchedule | None = None,
    ) -> None:
        """Set ranking and budget.

        Args:
            ranking: What heads are ranked by.
            num_heads: How many heads to keep, or how many of each kind of attention.
            keep: Which share of the heads to keep, instead, likewise; a quarter when neither is given.
            min_per_layer: How many heads every layer keeps at least.
            share_per_round: Which share of all heads each round closes.
            schedule: When the rounds are.

        Raises:
            ValueError: ``share_per_round`` is no share, or the schedule ends before a batch was seen.
        """
        super().__init__()
        self.ranking = ranking
        self._budget = HeadBudget(num_heads, keep, min_per_layer)
        self._share = share_per_round
        self._schedule = schedule or BudgetSchedule()
        if not 0 < share_per_round <= 1:
            raise InputError(f"share_per_round={share_per_round} is not a share: give more than 0 and at most 1.")
        if self._schedule.end == 0:
            raise InputError("schedule.end=0 leaves no batch to rank heads by: give a number above 0.")

    def check(self, gates: HeadGates) -> None:
        """Raise ``InputError`` if the gates cannot keep the budget."""
        self._budget.parts(gates)

    def attach(self, gates: HeadGates) -> None:
        """Open every gate; a mask decides their values from now on, and ``log_alpha`` is not trained."""
        self._budget.resolve(gates)
        gates.log_alpha.requires_grad_(False)
        gates.sampler = HeadMask(gates)
        self.ranking.attach(gates)

    def update(self, gates: HeadGates, progress: float) -> None:
        """Close gates if a round is due after this share of the search."""
        gates.forget_draw()
        left = [self._num_left(part, budget, progress) for part, budget in self._budget.parts(gates)]
        if sum(left) < _mask_of(gates).num_open.value:
            _mask_of(gates).fix(self._choose(gates, left), num_open=sum(left))
            self.ranking.start_over(gates)
        elif progress <= self._schedule.start < self._schedule.end:
            self.ranking.start_over(gates)

    def penalty(self, gates: HeadGates) -> Tensor:
        """Return zero: gates are not trained."""
        return gates.log_alpha.new_zeros(())

    def target(self, gates: HeadGates) -> float:
        """Return how many heads are open at this moment."""
        return float(_mask_of(gates).num_open.value)

    def kept(self, gates: HeadGates) -> Tensor:
        """Keep the open heads that rank first."""
        return self._choose(gates, [budget for _, budget in self._budget.parts(gates)])

    def _num_left(self, part: BudgetPart, budget: int, progress: float) -> int:
        """Return how many heads the rounds leave open that are due by now."""
        total = part.num_heads
        wanted = self._schedule.target(progress, total=total, budget=budget)
        if wanted <= budget:
            return budget
        size = max(1, round(self._share * total))
        # Rounding in the schedule must not put a round off.
        num_rounds = int((total - wanted) / size + 1e-6)
        left = max(budget, total - num_rounds * size)
        return part.nearest(left, min_per_layer=self._budget.min_per_layer)

    @torch.no_grad()
    def _choose(self, gates: HeadGates, num_heads: Sequence[int]) -> Tensor:
        scores = self.ranking.scores(gates)
        if distributed.is_available() and distributed.is_initialized():
            # Processes have seen different batches, and have to close the same heads.
            distributed.all_reduce(scores)
        # Closed gates come last. They are not out of reach: where gates stand for different numbers of heads, one may
        # have to open again for the number to be met.
        worse = scores - 2 * len(scores) * (scores.max() - scores.min() + 1)
        return self._budget.choose(gates, torch.where(_mask_of(gates).mask > 0, scores, worse), num_heads=num_heads)


def _mask_of(gates: HeadGates) -> HeadMask:
    assert isinstance(gates.sampler, HeadMask), "attach() the objective to the gates first"
    return gates.sampler
