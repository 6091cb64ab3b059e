"""Iterative pruning: in each round, the heads and neurons that rank lowest close permanently."""

from collections.abc import Mapping, Sequence
from typing import Protocol, SupportsFloat

import torch
from torch import Tensor, distributed

from gating.errors import InputError, OperationError, RemedyError
from gating.gates import HeadGates
from gating.objectives.base import NOT_ATTACHED, KeepsBudget, begin_search, check_search
from gating.objectives.baselines.mask import MaskSampler
from gating.objectives.budget import HeadBudget
from gating.objectives.costs import Costs
from gating.objectives.parts import COST, BudgetPart
from gating.objectives.schedule import BudgetSchedule

__all__ = ["HeadRanking", "IterativePruning"]


class HeadRanking(Protocol):
    """Rankings of heads and neurons for :class:`IterativePruning`.

    A ranking is a module, so that its buffers are in checkpoints.
    """

    def attach(self, gates: HeadGates) -> None:
        """Connect to the gates before training, and begin anew."""
        ...

    def scores(self, gates: HeadGates) -> Tensor:
        """Return a score for one head or neuron of each gate, ``[num_gates]``; those with low scores close first.

        With gates on both, scores must be comparable: those of one unit of cost, such as a parameter.
        """
        ...

    def start_over(self, gates: HeadGates) -> None:
        """Discard all statistics, since a round has ended or the first one begins."""
        ...


class IterativePruning(KeepsBudget):
    """An objective that permanently closes the heads and neurons with the lowest rank in rounds (Michel et al. 2019).

    Gates are open or closed; weights are trained between the rounds. Each round closes the same share of all heads or
    neurons, or of their cost, 10 % in the paper, and the last round the rest above the budget, so that it is met.

    Example:
        >>> from gating import inject_gates
        >>> from transformers import BertConfig, BertModel
        >>> model = BertModel(BertConfig(hidden_size=8, num_attention_heads=4, num_hidden_layers=2, vocab_size=10))
        >>> from gating import Magnitude
        >>> gates, objective = inject_gates(model), IterativePruning(Magnitude(), num_heads=3)
        >>> objective.attach(gates)
        >>> objective.update(gates, 1.0)
        >>> gates.num_open()
        3
    """

    def __init__(  # noqa: D417 - the others are those of ExactBudget
        self,
        ranking: HeadRanking,
        *,
        num_heads: int | Mapping[str, int] | None = None,
        num_neurons: int | Mapping[str, int] | None = None,
        keep: float | Mapping[str, float] | None = None,
        cost: Costs = "macs",
        min_per_layer: int = 0,
        uniform: bool = False,
        share_per_round: float = 0.1,
        schedule: BudgetSchedule | None = None,
    ) -> None:
        """Set ranking and budget; the other arguments are those of :class:`~gating.objectives.ExactBudget`.

        Args:
            ranking: Ranking of the heads and neurons, such as :class:`Importance`.
            share_per_round: Share of all heads or neurons, or of their cost, that each round closes.
            schedule: Times of the rounds.

        Raises:
            InputError: ``ranking`` has no scores, ``share_per_round`` is out of range, or the schedule ends before the
                first batch.
        """
        super().__init__(HeadBudget(num_heads, keep, min_per_layer, num_neurons, cost, uniform), schedule)
        if isinstance(ranking, type) or not hasattr(ranking, "scores"):
            raise RemedyError(
                f"ranking={ranking!r} is no ranking of heads: ",
                python="give an object such as gating.Importance().",
                command="give objective=importance, objective=magnitude or objective=random, without it.",
            )
        self.ranking = ranking
        self._share_per_round = share_per_round
        if not (isinstance(share_per_round, SupportsFloat) and 0 < share_per_round <= 1):
            raise InputError(f"share_per_round={share_per_round!r} is not a share: give more than 0 and at most 1.")
        if self._schedule.end == 0:
            raise InputError("schedule.end=0 leaves no batch to rank heads by: give a number above 0.")

    def attach(self, gates: HeadGates) -> None:
        """Open every gate; a mask gives their values from now on, and ``log_alpha`` is not trained."""
        parts = [part for part, _ in self._budget.parts(gates)]
        begin_search(self, gates)
        gates.log_alpha.requires_grad_(False)
        gates.sampler = MaskSampler(gates, num_open=self._budget.amount(gates, [part.total for part in parts]))
        self.ranking.attach(gates)

    def update(self, gates: HeadGates, progress: float) -> None:
        """Close gates if a round is due at this share of the search."""
        check_search(self, gates)
        gates.renew_values()
        left = [self._num_left(part, budget, progress) for part, budget in self._budget.parts(gates)]
        num_open = self._budget.amount(gates, left)
        if num_open < _mask_of(gates).num_open.value:
            _mask_of(gates).fix(self._choose(gates, self._budget, left), num_open=num_open)
            self.ranking.start_over(gates)
        elif progress <= self._schedule.earliest < self._schedule.end:
            self.ranking.start_over(gates)

    def target(self, gates: HeadGates) -> float:
        """Return the number of open heads or neurons; with gates on both, the share of cost that may be open."""
        return float(_mask_of(gates).num_open.value)

    def kept(self, gates: HeadGates) -> Tensor:
        """Return the open gates with the highest rank that meet the budget."""
        return self._choose(gates, self._budget)

    def kept_at(self, gates: HeadGates, keep: float) -> Tensor:
        """Return the gates that stay with another share of the cost, or of the heads or neurons of gates on one."""
        return self._choose(gates, self._budget.with_keep(keep, gates))

    def _num_left(self, part: BudgetPart, budget: float, progress: float) -> float:
        """Return the heads, neurons or share of cost of a part that are open after the rounds that are due by now."""
        total = part.total
        wanted = self._schedule.target(progress, total=total, budget=budget)
        if wanted <= budget:
            return budget
        size = self._share_per_round if part.unit == COST else max(1, round(self._share_per_round * total))
        # Rounding in the schedule must not delay a round.
        num_rounds = int((total - wanted) / size + 1e-6)
        left = max(budget, total - num_rounds * size)
        return part.nearest(left)

    @torch.no_grad()
    def _choose(self, gates: HeadGates, budget: HeadBudget, numbers: Sequence[float] | None = None) -> Tensor:
        check_search(self, gates)
        scores = self.ranking.scores(gates)
        if distributed.is_available() and distributed.is_initialized():
            # Ranks have different batches, but must close the same heads.
            distributed.all_reduce(scores)
        # Closed gates rank below all open ones, but can be chosen: if gates have different numbers of heads, one may
        # have to open again to meet the number.
        is_open = _mask_of(gates).mask > 0
        if any(part.unit == COST for part, _ in budget.parts(gates)):
            worse = _just_below(scores, is_open)
        else:
            worse = scores - 2 * len(scores) * (scores.max() - scores.min() + 1)
        return budget.choose(gates, torch.where(is_open, scores, worse), numbers=numbers)


def _just_below(scores: Tensor, is_open: Tensor) -> Tensor:
    """Return scores below those of all open gates, by no more than a hundredth of the range of these.

    A budget of cost is filled by scores above the lowest one (:func:`~gating.objectives.knapsack.values_of`). If closed
    gates were far below, open ones would all be alike.
    """
    lowest, highest = scores[is_open].aminmax()
    span = (highest - lowest) if highest > lowest else torch.ones_like(lowest)
    depth = (scores.max() - scores) / (scores.max() - scores.min()).clamp_min(1e-20)
    return lowest - 0.01 * span * (0.1 + 0.9 * depth)


def _mask_of(gates: HeadGates) -> MaskSampler:
    if not isinstance(gates.sampler, MaskSampler):
        raise OperationError(NOT_ATTACHED)
    return gates.sampler
