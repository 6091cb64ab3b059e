"""Gates without noise, for frozen weights: soft at first, then sharper, then open or closed with learned values."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from gating.gates import HeadGates, hard_concrete
from gating.objectives.base import check_search
from gating.objectives.baselines.fisher import Fisher
from gating.objectives.baselines.importance import Importance
from gating.objectives.baselines.iterative import HeadRanking
from gating.objectives.baselines.mask import HostCount
from gating.objectives.costs import Costs
from gating.objectives.exact import ExactBudget
from gating.objectives.schedule import BudgetSchedule

__all__ = ["DeterministicBudget", "SharpenedGates"]

# Factor of the locations at the end of the descent; it grows from 1 as a geometric series.
_SHARPEST = 30.0
# Logarithm of a learned value over its parameter: with the rate 0.1 of gates, a step changes a value by about 2 %.
_SCALE = 0.2
# Phases of the gates: all at 1; between 0 and 1; open with a learned value, or closed.
_RANKED, _SHARED, _DECIDED = 0, 1, 2


class SharpenedGates(nn.Module):
    """A sampler of gates without noise, the same in training and evaluation.

    Attributes:
        phase: 0 while all gates are 1; 1 while each is the probability to be open of the exact budget; 2 once each is
            closed, or open with a value that is learned.
        mask: One for open gates, zero for closed ones, ``[num_gates]``.
        strength: Parameter of the values of open gates, ``exp(0.2 strength)``, ``[num_gates]``.
    """

    mask: Tensor

    def __init__(self, gates: HeadGates) -> None:
        """Start with every gate at 1."""
        super().__init__()
        self.phase = HostCount(_RANKED)
        self.register_buffer("mask", torch.ones_like(gates.log_alpha, requires_grad=False))
        self.strength = nn.Parameter(torch.zeros_like(gates.log_alpha))
        self._threshold = hard_concrete.open_threshold(gates.temperature, gates.stretch_limits)

    def sample(self, log_alpha: Tensor) -> Tensor:
        """Return the values; differentiable."""
        return self.values(log_alpha)

    def values(self, log_alpha: Tensor) -> Tensor:
        """Return the values: ones, shares of the budget, or learned ones and zeros."""
        with torch.autocast(device_type=log_alpha.device.type, enabled=False):
            values = self.mask
            if self.phase.value == _SHARED:
                values = torch.sigmoid(log_alpha.float() - self._threshold)
            elif self.phase.value == _DECIDED:
                values = self.mask * (_SCALE * self.strength).exp()
            # Processes exchange the gradients of all parameters in each step.
            return values + 0.0 * (log_alpha + self.strength)

    def prob_open(self, log_alpha: Tensor) -> Tensor:
        """Return the shares of the budget, or the mask: no gate is random."""
        return self.values(log_alpha) if self.phase.value == _SHARED else self.mask


class DeterministicBudget(ExactBudget):
    """The exact budget with gates that have no noise, for the search on frozen weights.

    In models of many layers, the noise of all gates together drowns the signal of each. Gates without noise share the
    budget instead of deciding, unless they are made to, as here:

    1. Before the descent all gates are 1, and a ranking measures them. The logarithms of its scores are the first
       locations, so that gates differ from the beginning.
    2. In the descent a gate is its probability to be open under :class:`ExpectedCount`, while a factor of the locations
       grows from 1 to 30: no gate is left in between.
    3. From its end on, gates are open or closed, exactly within the budget. The values of open ones are learned and may
       exceed 1, as in DDP (2026, arXiv 2603.08065), so that what stays makes up for what has gone. Removal folds them.

    Attributes:
        learns_values: True: a choice that stays the same does not end the search.

    Example:
        >>> from gating import inject_gates
        >>> from transformers import BertConfig, BertModel
        >>> model = BertModel(BertConfig(hidden_size=8, num_attention_heads=4, num_hidden_layers=2, vocab_size=10))
        >>> gates, objective = inject_gates(model), DeterministicBudget(num_heads=3)
        >>> objective.attach(gates)
        >>> objective.update(gates, 1.0)
        >>> gates.num_open()
        3
    """

    learns_values = True

    def __init__(  # noqa: D417 - the others are those of ExactBudget
        self,
        *,
        num_heads: int | Mapping[str, int] | None = None,
        num_neurons: int | Mapping[str, int] | None = None,
        keep: float | Mapping[str, float] | None = None,
        cost: Costs = "macs",
        min_per_layer: int = 0,
        uniform: bool = False,
        ranking: HeadRanking | None = None,
        schedule: BudgetSchedule | None = None,
    ) -> None:
        """Set the budget; the other arguments are those of :class:`~gating.objectives.ExactBudget`.

        Args:
            ranking: Ranking with positive scores for the first locations; :class:`~gating.objectives.Fisher` if left
                out.
            schedule: The descent. The ranking is measured before its start, which does not wait for the loss.
        """
        super().__init__(
            num_heads=num_heads,
            num_neurons=num_neurons,
            keep=keep,
            cost=cost,
            min_per_layer=min_per_layer,
            uniform=uniform,
            schedule=schedule,
        )
        # Frozen weights leave the loss where it is.
        self._start = None
        self.ranking = Fisher() if ranking is None else ranking

    def attach(self, gates: HeadGates) -> None:
        """Let the gates compete for the budget, in a search that begins with all of them at 1."""
        super().attach(gates)
        gates.sampler = SharpenedGates(gates)
        self.ranking.attach(gates)

    def update(self, gates: HeadGates, progress: float) -> None:
        """Set the budget and the sharpness for this share of the search, and the phase of the gates."""
        super().update(gates, progress)
        phase = self._gates_of(gates).phase
        if phase.value == _RANKED and progress >= self._schedule.earliest:
            self._place(gates)
            phase.value = _SHARED
        if phase.value == _SHARED and progress >= self._schedule.end:
            self._gates_of(gates).mask.copy_(super().kept(gates))
            phase.value = _DECIDED
        if phase.value != _RANKED and isinstance(self.ranking, Importance):
            self.ranking.is_measuring = False

    def kept(self, gates: HeadGates) -> Tensor:
        """Return the open gates, or before the end of the descent those with the largest ``log_alpha``."""
        check_search(self, gates)
        sampler = self._gates_of(gates)
        return sampler.mask > 0 if sampler.phase.value == _DECIDED else super().kept(gates)

    def _sharpness(self, progress: float) -> float:
        start, end = self._schedule.earliest, self._schedule.end
        done = (progress - start) / (end - start) if end > start else 1.0
        return float(_SHARPEST ** min(1.0, max(0.0, done)))

    @torch.no_grad()
    def _place(self, gates: HeadGates) -> None:
        """Set the first locations: the logarithms of the scores, around 0."""
        scores = self.ranking.scores(gates).double()
        # Gates that no batch has reached are below all others.
        least = scores[scores > 0].min() / 10 if (scores > 0).any() else torch.ones_like(scores[0])
        logarithms = torch.maximum(scores, least).log()
        gates.log_alpha.copy_(logarithms - logarithms.mean())

    def _gates_of(self, gates: HeadGates) -> SharpenedGates:
        check_search(self, gates)
        assert isinstance(gates.sampler, SharpenedGates)
        return gates.sampler
