"""Rankings of heads and neurons, and the objective whose rounds close those that rank lowest."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, distributed

from gating.errors import InputError
from gating.gates import HeadGates
from gating.gates.hard_concrete import GateSampler, are_numbers
from gating.objectives.base import KeepsBudget, OfOneSearch
from gating.objectives.parts import COST, Part, chosen, sizes_of

__all__ = ["IterativePruning", "Magnitude", "MaskSampler", "RandomOrder", "Ranking", "per_size"]


class Ranking(OfOneSearch):
    """Base class of rankings of heads and neurons for :class:`IterativePruning` and :class:`DeterministicBudget`.

    A ranking is a module, so that its buffers are in checkpoints. A subclass overrides :meth:`scores`, and the others
    if it has statistics.

    Attributes:
        is_measuring: Whether statistics are collected; objectives that have ranked end it, since it takes time.
    """

    is_measuring = True

    def attach(self, gates: HeadGates) -> None:
        """Connect to the gates before training, and begin anew."""
        self._search_number = gates.search_number
        self.is_measuring = True

    def scores(self, gates: HeadGates, sizes: Tensor | None = None) -> Tensor:
        """Return a score per size for each gate, ``[num_gates]``; those with low scores close first.

        Args:
            gates: The gates.
            sizes: Share of each gate in the budget, ``[num_gates]``: its units, or its share of the cost for which
                gates compete; 0 for padding. Units if left out.
        """
        raise NotImplementedError

    def scores_of_all(self, gates: HeadGates, sizes: Tensor) -> Tensor:
        """Return the sum of the scores of all processes, which have different batches but must decide alike."""
        scores = self.scores(gates, sizes)
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(scores)
        return scores

    def start_over(self, gates: HeadGates) -> None:
        """Discard all statistics, since a round has ended or the first one begins."""


class Magnitude(Ranking):
    """A ranking by the L1 norm of the weights of each head, or group of neurons, at the time of a round.

    ``torch.nn.utils.prune.ln_structured`` with ``n=1`` ranks the rows of one layer in this way; this class ranks the
    heads and neurons of all layers, without normalization. Beside neurons it is the mean of the weights, whatever they
    cost: norms are no parts of a loss, and so alike that per cost nearly all heads would go, or none.
    """

    @torch.no_grad()
    def scores(self, gates: HeadGates, sizes: Tensor | None = None) -> Tensor:
        """Return the mean norm of each gate's units, ``[num_gates]``; with gates on neurons, that of its weights."""
        device = gates.log_alpha.device
        norms = [
            block.norms().view(size, -1).sum(dim=1).to(device)
            for block, size in zip(gates.blocks(), gates.block_sizes, strict=True)
        ]
        return per_size(torch.cat(norms), gates, gates.parameters_per_gate if "neurons" in gates.units else None)


class RandomOrder(Ranking):
    """A random ranking that depends on its seed alone, the baseline of all other rankings."""

    def __init__(self, *, seed: int = 0) -> None:
        """Set the seed, an integer."""
        super().__init__()
        self._seed = torch.Generator().manual_seed(seed).initial_seed()

    def scores(self, gates: HeadGates, sizes: Tensor | None = None) -> Tensor:
        """Return a random number from 0 to 1 for each gate, ``[num_gates]``, the same at every call."""
        generator = torch.Generator().manual_seed(self._seed)
        return torch.rand(gates.log_alpha.numel(), generator=generator, device="cpu").to(gates.log_alpha.device)


def per_size(totals: Tensor, gates: HeadGates, sizes: Tensor | None) -> Tensor:
    """Divide totals of gates by their sizes, or by their numbers of units without sizes, ``[num_gates]``."""
    if sizes is None:
        sizes = torch.tensor(gates.units_per_gate, device="cpu")
    return totals / sizes.masked_fill(sizes == 0, 1).to(totals.device, totals.dtype)


class MaskSampler(GateSampler):
    """A sampler that returns the mask of an objective, in training and in evaluation.

    Attributes:
        mask: One for open gates, zero for closed ones, ``[num_gates]``.
        numbers: Number of open heads or neurons, or share of the cost of open gates, of each part.
    """

    mask: Tensor

    def __init__(self, gates: HeadGates, numbers: Sequence[float]) -> None:
        """Start with every gate open; the ``numbers`` or shares are those of all gates."""
        super().__init__(numbers)
        self.register_buffer("mask", torch.ones_like(gates.log_alpha, requires_grad=False))

    def values(self, log_alpha: Tensor) -> Tensor:
        """Return the mask."""
        return self.mask


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
            ranking: Ranking of the heads and neurons, such as :class:`Importance`.
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
            sampler.mask.copy_(chosen(self._parts, self._scores(gates, self._parts), left))
            sampler.numbers = left
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
        is_open = self._sampler_of(gates).mask > 0
        scores = self.ranking.scores_of_all(gates, sizes_of(parts, like=gates.log_alpha))
        # Closed gates rank below all open ones, but can be chosen: if gates have different numbers of heads, one may
        # have to open again to meet the number.
        return torch.where(is_open, scores, scores - (scores.max() - scores.min() + 1))

    def _sampler_of(self, gates: HeadGates) -> MaskSampler:
        self.check_search(gates)
        assert isinstance(gates.sampler, MaskSampler)
        return gates.sampler
