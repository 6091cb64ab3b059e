"""Differentiable subset pruning (Li, Cotterell and Sachan 2021, arXiv 2108.04657)."""

import math
from collections.abc import Mapping
from typing import Literal, SupportsFloat, cast

from torch import nn

from gating.errors import InputError
from gating.gates import HeadGates
from gating.gates.hard_concrete import GateSampler
from gating.objectives.base import KeepsBudget, begin_search, check_search
from gating.objectives.baselines.subset import GumbelTopK, StraightThroughTopK
from gating.objectives.budget import HeadBudget
from gating.objectives.costs import Costs
from gating.objectives.parts import BudgetPart
from gating.objectives.per_part import UniformRanks, modules_of, per_part
from gating.objectives.schedule import BudgetSchedule

__all__ = ["TopK"]


class TopK(KeepsBudget):
    """Differentiable subset pruning: an objective with importance variables of the heads, exactly k of them open.

    The joint variant of the paper, in which weights and importance variables ``w`` are trained together. ``gumbel``
    draws a relaxed subset with Gumbel noise at each step, while the temperature falls geometrically: from values of
    ``k / n`` to ones and zeros. ``straight_through`` opens the k heads with the largest ``w`` and passes the gradient
    to all heads. As in the paper, ``w`` starts from a Xavier uniform distribution over layers times heads and has the
    learning rate 0.5: steps of Adam do not depend on the scale of gradients, so that a ``scale`` of 5 makes 0.5 of the
    gates' rate 0.1.

    The differences are for runs of a thousand steps; the paper's have 36800 (BERT on MNLI). In the paper, k is the
    budget from the first step (``BudgetSchedule(start=0, end=0)``) and the temperature falls from 1000 to 1e-8 in 0.68
    of the steps, so that most heads of a pre-trained model are off while it learns the task. In short runs, the last
    layer won all k places in this way, since the softmax compares the gradient of each head with the mean of all. Here
    k follows the same schedule as in other objectives, and the temperature falls from 10 to 0.1, where gradients of
    heads still differ. After the search, the k heads are trained without noise, where the paper evaluates immediately;
    and ``w`` has a constant learning rate, where the paper's falls linearly to zero.

    The paper draws heads. For neurons and for a share of cost, the draw is that of
    :func:`~gating.objectives.baselines.subset.soft_knapsack`, since items of different costs cannot be counted.

    Example:
        >>> from gating import inject_gates
        >>> from transformers import BertConfig, BertModel
        >>> model = BertModel(BertConfig(hidden_size=8, num_attention_heads=4, num_hidden_layers=2, vocab_size=10))
        >>> gates, objective = inject_gates(model), TopK(num_heads=3)
        >>> objective.attach(gates)
        >>> objective.update(gates, 1.0)
        >>> gates.num_open()
        3
    """

    def __init__(  # noqa: D417 - the others are those of ExactBudget
        self,
        *,
        num_heads: int | Mapping[str, int] | None = None,
        num_neurons: int | Mapping[str, int] | None = None,
        keep: float | Mapping[str, float] | None = None,
        cost: Costs = "macs",
        min_per_layer: int = 0,
        uniform: bool = False,
        variant: Literal["gumbel", "straight_through"] = "gumbel",
        initial_temperature: float = 10.0,
        final_temperature: float = 0.1,
        cooldown: float = 0.68,
        scale: float = 5.0,
        schedule: BudgetSchedule | None = None,
    ) -> None:
        """Set the budget; the other arguments are those of :class:`~gating.objectives.ExactBudget`.

        Draws of ``gumbel`` ignore ``min_per_layer`` and ``uniform``.

        Args:
            variant: ``gumbel`` or ``straight_through``.
            initial_temperature: Temperature of ``gumbel`` at the start.
            final_temperature: Temperature of ``gumbel`` after ``cooldown``.
            cooldown: Share of the search in which the temperature falls.
            scale: ``w`` over ``log_alpha``, and so the learning rate of ``w`` over that of the gates.
            schedule: Descent of k from all heads to the budget.

        Raises:
            InputError: A number is out of range, or the variant is unknown.
        """
        super().__init__(HeadBudget(num_heads, keep, min_per_layer, num_neurons, cost, uniform), schedule)
        if variant not in ("gumbel", "straight_through"):
            raise InputError(f"The variant of top-k is gumbel or straight_through, got {variant!r}.")
        if not initial_temperature >= final_temperature > 0:
            raise InputError(
                "The temperature must fall and stay above 0, got "
                f"initial_temperature={initial_temperature} and final_temperature={final_temperature}."
            )
        if not 0 <= cooldown <= 1:
            raise InputError(f"cooldown={cooldown} is not a share of the search: give a number from 0 to 1.")
        if not (isinstance(scale, SupportsFloat) and 0 < scale < math.inf):
            raise InputError(f"scale={scale!r} must be positive.")
        self._variant = variant
        self._temperatures = (initial_temperature, final_temperature)
        self._cooldown = cooldown
        self._scale = scale

    def attach(self, gates: HeadGates) -> None:
        """Initialize ``log_alpha`` at random and set the sampler of the gates."""
        parts = self._budget.parts(gates)
        begin_search(self, gates)
        bound = math.sqrt(6 / (len(gates.block_sizes) + max(gates.block_sizes)))
        nn.init.uniform_(gates.log_alpha, -bound / self._scale, bound / self._scale)
        own = [part for part, _ in parts]
        samplers = per_part(own, [self._sampler(part, budget) for part, budget in parts])
        gates.sampler = cast(GateSampler, samplers.to(gates.log_alpha.device))
        if own[0].uniform:
            gates.constraint = per_part(own, [UniformRanks(part) for part in own]).to(gates.log_alpha.device)

    def update(self, gates: HeadGates, progress: float) -> None:
        """Set the temperature and k for this share of the search."""
        check_search(self, gates)
        gates.renew_values()
        for (part, budget), sampler in zip(self._budget.parts(gates), _samplers_of(gates), strict=True):
            if isinstance(sampler, GumbelTopK):
                sampler.temperature.fill_(self._temperature(progress))
            sampler.num_open.value = self._num_open(part, budget, progress)

    def target(self, gates: HeadGates) -> float:
        """Return the number of open heads or neurons; with gates on both, the share of cost that may be open."""
        return float(self._budget.amount(gates, [sampler.num_open.value for sampler in _samplers_of(gates)]))

    def _sampler(self, part: BudgetPart, budget: float) -> StraightThroughTopK:
        number = self._num_open(part, budget, 0.0)
        if self._variant == "straight_through":
            return StraightThroughTopK(part, number=number)
        return GumbelTopK(part, number=number, scale=self._scale, temperature=self._temperature(0.0))

    def _num_open(self, part: BudgetPart, budget: float, progress: float) -> float:
        return part.nearest(self._schedule.target(progress, total=part.total, budget=budget))

    def _temperature(self, progress: float) -> float:
        initial, final = map(math.log, self._temperatures)
        done = min(1.0, progress / self._cooldown) if self._cooldown else 1.0
        return math.exp(initial + done * (final - initial))


def _samplers_of(gates: HeadGates) -> list[StraightThroughTopK]:
    samplers = modules_of(cast(nn.Module | None, gates.sampler))
    return [module for module in samplers if isinstance(module, StraightThroughTopK)]
