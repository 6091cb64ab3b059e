"""Budgets that are met exactly: with hard-concrete gates, and without noise for frozen weights."""

from typing import Any

import torch
from torch import Tensor, nn

from gating.gates import HeadGates, hard_concrete
from gating.gates.hard_concrete import GateSampler
from gating.objectives.base import KeepsBudget
from gating.objectives.expected_count import EqualLayers, ExpectedCount
from gating.objectives.parts import Part, sizes_of
from gating.objectives.rankings import Fisher, Ranking
from gating.objectives.schedule import DescentStart

# Expected share of open gates while the descent waits: so near to 1 that no gate is drawn below 1, which would disturb
# the training of the weights, and none moves. Sigmoids never sum to all heads.
_ALL_OPEN = 1 - 1e-6
# Expected share of open gates as the descent begins. Gates start with a probability of 0.98.
_INITIAL = 0.98
# Sharpness from the end of the descent on: gates are open or closed, and weights are trained without their noise.
_SHARP = 1000.0
# Factor of the locations at the end of the descent; it grows from 1 as a geometric series.
_SHARPEST = 30.0
# Logarithm of a learned value over its parameter: with the rate 0.1 of gates, a step changes a value by about 2 %.
_LOG_OF_STRENGTH = 0.2
# Phases of the gates: all at 1; between 0 and 1; open with a learned value, or closed.
_RANKED, _SHARED, _DECIDED = 0, 1, 2


class ExactBudget(KeepsBudget):
    """An objective that keeps exactly the given number of heads or neurons, without a hyperparameter.

    Instead of a price on open gates, the expected number of open gates is held at a scheduled budget at every step
    (:class:`~gating.objectives.expected_count.ExpectedCount`). At the end the heads with the largest ``log_alpha``
    stay. If each kind of attention has a budget, heads compete within their kind. Heads and neurons with a number each
    compete among themselves; for a share of the cost of both they compete with each other, and the kept gates leave no
    room for another one (:meth:`Part.choose <gating.objectives.parts.Part.choose>`).

    An objective that observes the losses of training follows them, unless the schedule has a fixed start. All gates
    rest at 1 until the loss has fallen (:class:`~gating.objectives.schedule.DescentStart`): heads that close while a
    model still guesses are chosen by noise, and the noise of gates delays the model. At the end of such a descent each
    gate is decided, 1 or 0, and weights are trained without noise again.

    Example:
        >>> from gating import inject_gates
        >>> from transformers import BertConfig, BertModel
        >>> model = BertModel(BertConfig(hidden_size=8, num_attention_heads=4, num_hidden_layers=2, vocab_size=10))
        >>> gates, objective = inject_gates(model), ExactBudget(num_heads=3)
        >>> objective.attach(gates)
        >>> objective.update(gates, 1.0)
        >>> round(gates.expected_open().item(), 3), objective.kept(gates).sum().item()
        (3.0, 3)
    """

    def attach(self, gates: HeadGates) -> None:
        """Let the gates compete for the budget, in a search that begins."""
        super().attach(gates)
        device = gates.log_alpha.device
        if self._follows_loss:
            self._start = DescentStart()
            if not gates.log_alpha.is_meta:
                self._start.to(device)
        count = _expected_count(gates, self._parts)
        constraint = nn.Sequential(EqualLayers(self._parts), count) if self._budget.uniform else count
        gates.constraint = constraint.to(device)

    def update(self, gates: HeadGates, progress: float) -> None:
        """Set the expected number of open heads or neurons, or the share of cost, for this share of the search."""
        super().update(gates, progress)
        gates.renew_values()
        start = None if self._start is None else self._start.update(self._schedule, progress)
        waits = self._start is not None and start is None
        limits = [part.total for part in self._parts] if waits else self._limits(progress, total=_INITIAL, start=start)
        count = _count_of(gates)
        for place, (part, limit) in enumerate(zip(self._parts, limits, strict=True)):
            count.target[place] = min(limit, _ALL_OPEN * part.total) * _scale(part)
        count.sharpness.fill_(self._sharpness(progress))

    def observe(self, loss: Tensor) -> None:
        """Add the loss of a training batch, a scalar, which the start of the descent follows."""
        if self._start is not None:
            self._start.observe(loss)

    def target(self, gates: HeadGates) -> float:
        """Return the expected number of open heads or neurons; with gates on both, the expected share of cost."""
        self.check_search(gates)
        targets = _count_of(gates).target.tolist()
        return self._amount([float(one) / _scale(part) for part, one in zip(self._parts, targets, strict=True)])

    @property
    def _follows_loss(self) -> bool:
        return self._schedule.start is None

    def _sharpness(self, progress: float) -> float:
        """Return the factor of the locations at this share of the search."""
        decides = self._start is not None and self._start.followed_loss(self._schedule)
        return _SHARP if decides and progress >= self._schedule.end else 1.0


def _expected_count(gates: HeadGates, parts: list[Part]) -> ExpectedCount:
    weights, numbers = [0.0] * gates.log_alpha.numel(), [0] * gates.log_alpha.numel()
    for number, part in enumerate(parts):
        for gate, size in zip(part.gates, part.sizes, strict=True):
            weights[gate], numbers[gate] = size * _scale(part), number
    return ExpectedCount(
        [_INITIAL * part.total * _scale(part) for part in parts],
        temperature=gates.temperature,
        stretch_limits=gates.stretch_limits,
        weights=weights,
        part_of_gate=numbers,
    )


def _scale(part: Part) -> float:
    """Return the factor with which the weights of units that are weighed are 1 in the mean, as those of heads are."""
    return len(part.sizes) / part.total if part.is_weighed else 1


def _count_of(gates: HeadGates) -> ExpectedCount:
    assert gates.constraint is not None
    return next(module for module in gates.constraint.modules() if isinstance(module, ExpectedCount))


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
                values = self.mask * (_LOG_OF_STRENGTH * self.strength).exp()
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
