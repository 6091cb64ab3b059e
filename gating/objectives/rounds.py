"""The objective whose rounds close the heads and neurons that rank lowest, and the mask of its gates."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gating.errors import InputError
from gating.gates import HeadGates
from gating.gates.hard_concrete import GateSampler, are_numbers
from gating.objectives.base import KeepsBudget
from gating.objectives.parts import COST, Part, chosen, sizes_of
from gating.objectives.rankings import Ranking


class MaskSampler(GateSampler):
    """A sampler that returns one for the open gates of an objective, and zero for those that a round has closed.

    Attributes:
        closed_in: Number of the round that has closed each gate, ``[num_gates]``; 0 for open gates.
    """

    closed_in: Tensor

    def __init__(self, gates: HeadGates, numbers: Sequence[float]) -> None:
        """Start with every gate open; the ``numbers`` or shares are those of all gates."""
        super().__init__(numbers)
        self.register_buffer("closed_in", torch.zeros_like(gates.log_alpha, requires_grad=False))

    def values(self, log_alpha: Tensor) -> Tensor:
        """Return the mask."""
        return (self.closed_in == 0).to(log_alpha)

    def close(self, kept: Tensor) -> None:
        """Close all gates but some, ``[num_gates]``, in a round; those that are closed keep its number."""
        number = self.closed_in.max() + 1
        self.closed_in.copy_(torch.where(self.closed_in > 0, self.closed_in, number).masked_fill(kept, 0.0))


class IterativePruning(KeepsBudget):
    """An objective that permanently closes the heads and neurons with the lowest rank in rounds (Michel et al. 2019).

    Gates are open or closed; weights are trained between the rounds. Each round closes the same share of all heads or
    neurons, or of their cost, 10 % in the paper, and the last round the rest above the budget, so that it is met.

    Example:
        >>> from gating import Magnitude, inject_gates
        >>> from transformers import BertConfig, BertModel
        >>> model = BertModel(BertConfig(hidden_size=8, num_attention_heads=4, num_hidden_layers=2, vocab_size=10))
        >>> gates, objective = inject_gates(model), IterativePruning(Magnitude(), num_heads=3)
        >>> objective.attach(gates)
        >>> objective.update(gates, 1.0)
        >>> gates.num_open()
        3
    """

    def __init__(self, ranking: Ranking, *, share_per_round: float = 0.1, **budget: Any) -> None:  # noqa: D417
        """Set ranking and budget; the other arguments are those of :class:`~gating.objectives.ExactBudget`.

        The schedule has the times of the rounds.

        Args:
            ranking: Ranking of the heads and neurons, such as :class:`~gating.objectives.Importance`.
            share_per_round: Share of all heads or neurons, or of their cost, that each round closes.

        Raises:
            InputError: ``share_per_round`` is out of range, or the schedule ends before the first batch.
        """
        super().__init__(**budget)
        self.ranking = ranking
        self._share_per_round = share_per_round
        if not (are_numbers(share_per_round) and 0 < share_per_round <= 1):
            raise InputError(f"share_per_round={share_per_round!r} is not a share: give more than 0 and at most 1.")
        if self._schedule.end == 0:
            raise InputError("schedule.end=0 leaves no batch to rank heads by: give a number above 0.")

    def attach(self, gates: HeadGates) -> None:
        """Open every gate; a mask gives their values from now on, and ``log_alpha`` is not trained."""
        super().attach(gates)
        gates.log_alpha.requires_grad_(False)
        gates.sampler = MaskSampler(gates, [part.total for part in self._parts])
        self.ranking.attach(gates)

    def update(self, gates: HeadGates, progress: float) -> None:
        """Close gates if a round is due at this share of the search."""
        super().update(gates, progress)
        gates.renew_values()
        sampler = self._sampler_of(gates)
        left = [self._left(part, limit) for part, limit in zip(self._parts, self._limits(progress), strict=True)]
        if self._amount(left) < self._amount(sampler.numbers):
            sampler.close(chosen(self._parts, self._scores(gates, self._parts), left))
            sampler.numbers = left
            if progress < 1:  # At the end, the statistics are those of a choice for another budget.
                self.ranking.start_over(gates)
        elif progress <= self._schedule.earliest < self._schedule.end:
            self.ranking.start_over(gates)

    def target(self, gates: HeadGates) -> float:
        """Return the number of open heads or neurons; with gates on both, the share of cost that may be open."""
        return self._amount(self._sampler_of(gates).numbers)

    def _left(self, part: Part, wanted: float) -> float:
        """Return the heads, neurons or share of cost of a part that are open after the rounds that are due by now."""
        if wanted <= part.limit:
            return part.limit
        size = self._share_per_round if part.unit == COST else max(1, round(self._share_per_round * part.total))
        # Rounding in the schedule must not delay a round.
        num_rounds = int((part.total - wanted) / size + 1e-6)
        return part.nearest(max(part.limit, part.total - num_rounds * size))

    @torch.no_grad()
    def _scores(self, gates: HeadGates, parts: Sequence[Part]) -> Tensor:
        closed_in = self._sampler_of(gates).closed_in
        scores = self.ranking.scores_of_all(gates, sizes_of(parts, like=gates.log_alpha))
        # Closed gates rank below all open ones, those of the first round last, but can be chosen: for a larger budget,
        # or if gates have different numbers of heads and one has to open again to meet the number.
        rounds_ago = torch.where(closed_in > 0, closed_in.max() + 1 - closed_in, 0.0)
        return scores - rounds_ago.to(scores) * (scores.max() - scores.min() + 1)

    def _sampler_of(self, gates: HeadGates) -> MaskSampler:
        self.check_search(gates)
        assert isinstance(gates.sampler, MaskSampler)
        return gates.sampler
