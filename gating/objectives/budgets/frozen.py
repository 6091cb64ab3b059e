"""Gates without noise, for frozen weights: soft at first, then sharper, then open or closed with learned values."""

from typing import Any

import torch
from torch import Tensor, nn

from gating.gates import HeadGates, hard_concrete
from gating.gates.hard_concrete import GateSampler
from gating.objectives.budgets.exact import ExactBudget
from gating.objectives.parts import sizes_of
from gating.objectives.rankings.ranking import Ranking
from gating.objectives.rankings.sensitivity import Fisher

__all__ = ["DeterministicBudget", "SharpenedGates"]

# Factor of the locations at the end of the descent; it grows from 1 as a geometric series.
_SHARPEST = 30.0
# Logarithm of a learned value over its parameter: with the rate 0.1 of gates, a step changes a value by about 2 %.
_SCALE = 0.2
# Phases of the gates: all at 1; between 0 and 1; open with a learned value, or closed.
_RANKED, _SHARED, _DECIDED = 0, 1, 2


class SharpenedGates(GateSampler):
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
        super().__init__([_RANKED])
        self.register_buffer("mask", torch.ones_like(gates.log_alpha, requires_grad=False))
        self.strength = nn.Parameter(torch.zeros_like(gates.log_alpha))
        self._threshold = hard_concrete.open_threshold(gates.temperature, gates.stretch_limits)

    @torch.no_grad()
    def begin(self) -> None:
        """Set every gate to 1, and keep the parameter: an optimizer may have it."""
        self.phase = _RANKED
        self.mask.fill_(1.0)
        self.strength.zero_()
        self.strength.grad = None

    @property
    def phase(self) -> float:
        """The phase of the gates."""
        return self.numbers[0]

    @phase.setter
    def phase(self, phase: float) -> None:
        self.numbers[0] = phase

    def values(self, log_alpha: Tensor) -> Tensor:
        """Return the values: ones, shares of the budget, or learned ones and zeros."""
        with torch.autocast(device_type=log_alpha.device.type, enabled=False):
            values = self.mask
            if self.phase == _SHARED:
                values = torch.sigmoid(log_alpha.float() - self._threshold)
            elif self.phase == _DECIDED:
                values = self.mask * (_SCALE * self.strength).exp()
            # Processes exchange the gradients of all parameters in each step.
            return values + 0.0 * (log_alpha + self.strength)

    def prob_open(self, log_alpha: Tensor) -> Tensor:
        """Return the shares of the budget, or the mask: no gate is random."""
        return self.values(log_alpha) if self.phase == _SHARED else self.mask


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
    """

    learns_values = True

    # Frozen weights leave the loss where it is.
    _follows_loss = False

    def __init__(self, *, ranking: Ranking | None = None, **budget: Any) -> None:  # noqa: D417
        """Set the budget; the other arguments are those of :class:`~gating.objectives.ExactBudget`.

        The ranking is measured before the start of the schedule, which does not wait for the loss.

        Args:
            ranking: Ranking with positive scores for the first locations; :class:`~gating.objectives.Fisher` if left
                out.
        """
        super().__init__(**budget)
        self.ranking = Fisher() if ranking is None else ranking
        # A list, so that it is a submodule of the gates alone.
        self._samplers: list[SharpenedGates] = []

    def attach(self, gates: HeadGates) -> None:
        """Let the gates compete for the budget, in a search that begins with all of them at 1."""
        super().attach(gates)
        before = self._samplers[0] if self._samplers else None
        if before is None or before.mask.shape != gates.log_alpha.shape or before.mask.device != gates.log_alpha.device:
            self._samplers = [SharpenedGates(gates)]
        self._samplers[0].begin()
        gates.sampler = self._samplers[0]
        self.ranking.attach(gates)

    def update(self, gates: HeadGates, progress: float) -> None:
        """Set the budget and the sharpness for this share of the search, and the phase of the gates."""
        super().update(gates, progress)
        sampler = self._sampler_of(gates)
        if sampler.phase == _RANKED and progress >= self._schedule.earliest:
            self._place(gates)
            sampler.phase = _SHARED
        if sampler.phase == _SHARED and progress >= self._schedule.end:
            sampler.mask.copy_(super().kept(gates))
            sampler.phase = _DECIDED
        self.ranking.is_measuring = sampler.phase == _RANKED

    def kept(self, gates: HeadGates) -> Tensor:
        """Return the open gates, or before the end of the descent those with the largest ``log_alpha``."""
        sampler = self._sampler_of(gates)
        return sampler.mask > 0 if sampler.phase == _DECIDED else super().kept(gates)

    def _sharpness(self, progress: float) -> float:
        start, end = self._schedule.earliest, self._schedule.end
        done = (progress - start) / (end - start) if end > start else 1.0
        return float(_SHARPEST ** min(1.0, max(0.0, done)))

    @torch.no_grad()
    def _place(self, gates: HeadGates) -> None:
        """Set the first locations: the logarithms of the scores, around 0."""
        scores = self.ranking.scores_of_all(gates, sizes_of(self._parts, like=gates.log_alpha)).cpu().double()
        # Gates that no batch has reached are below all others.
        least = scores[scores > 0].min() / 10 if (scores > 0).any() else torch.ones_like(scores[0])
        logarithms = torch.maximum(scores, least).log()
        gates.log_alpha.copy_(logarithms - logarithms.mean())

    def _sampler_of(self, gates: HeadGates) -> SharpenedGates:
        self.check_search(gates)
        assert isinstance(gates.sampler, SharpenedGates)
        return gates.sampler
