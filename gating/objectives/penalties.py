"""Objectives of papers with a penalty on open gates: a fixed price, and multipliers that hold a target."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from gating.errors import InputError
from gating.gates import HeadGates
from gating.gates.hard_concrete import are_numbers
from gating.objectives.base import KeepsBudget, Objective
from gating.objectives.budget import HeadBudget
from gating.objectives.costs import Costs
from gating.objectives.expected_count import EqualLayers


class FixedPrice(Objective):
    """An objective that adds ``price * expected share of open gates`` to the loss.

    Louizos et al. 2018, arXiv 1712.01312, and Voita et al. 2019, arXiv 1905.09418. The share, not the number, so that a
    price means the same for models of any size. With gates on neurons it is the share of neurons, and with gates on
    both the share of their cost. The number of heads that stay is not known beforehand.
    """

    def __init__(self, *, price: float = 1.0, cost: Costs = "macs", start: float = 0.13) -> None:
        """Set the price.

        Args:
            price: Price of all heads together, in units of the task's loss (lambda of Voita et al., equation 8).
            cost: Cost of a gate if there are gates on both heads and neurons, as in
                :class:`~gating.objectives.ExactBudget`.
            start: Share of the search before the penalty begins.

        Raises:
            InputError: The price is negative or infinite, or ``start`` is not between 0 and 1.
        """
        super().__init__()
        if not (are_numbers(price, start) and 0 <= price < math.inf and 0 <= start <= 1):
            raise InputError(f"Give a finite price of 0 or more, got {price!r}, and start of 0 to 1, got {start!r}.")
        self._price = price
        self.cost = cost
        self._budget = HeadBudget(keep=1.0, cost=cost)
        self._start = start
        self._started = False

    def check(self, gates: HeadGates) -> None:
        """Raise ``InputError`` if the gates have no such cost."""
        self._budget.check(gates)

    def attach(self, gates: HeadGates) -> None:
        """Begin a search, in which there is no penalty before the start."""
        (part,) = self._budget.parts(gates)
        super().attach(gates)
        self._started = False
        shares = torch.tensor(part.sizes, device=gates.log_alpha.device, dtype=torch.float32) / part.total
        self.register_buffer("_shares", shares, persistent=False)

    def update(self, gates: HeadGates, progress: float) -> None:
        """Begin with the penalty at the scheduled start."""
        super().update(gates, progress)
        self._started = progress >= self._start

    def penalty(self, gates: HeadGates) -> Tensor:
        """Return ``price * mean P(open)``, weighted by neurons or cost, a scalar; zero before the start."""
        self.check_search(gates)
        price = self._price if self._started else 0.0
        return price * (gates.prob_open() * self.get_buffer("_shares")).sum()

    def kept(self, gates: HeadGates) -> Tensor | None:
        """Return None, so that open gates stay; if there are none, the gate that is closest to open."""
        if any(gates.count_open(unit) for unit in gates.units):
            return None
        is_unit = torch.tensor(gates.units_per_gate, device=gates.log_alpha.device) > 0
        best = gates.log_alpha.detach().masked_fill(~is_unit, -torch.inf).argmax()
        return torch.zeros_like(gates.log_alpha, dtype=torch.bool).index_fill(0, best, True)


class Lagrangian(KeepsBudget):
    """An objective that adds ``lambda_1 (s - t) + lambda_2 (s - t)^2`` to the loss and trains the lambdas by ascent.

    CoFi (Xia et al. 2022, arXiv 2204.00408): ``s`` is the expected sparsity of the gates and ``t`` the target, which
    rises linearly from zero during the warm-up of the search (the paper's ``L_c``,
    ``L0Module.lagrangian_regularization`` in the authors' program; after Wang et al. 2020, arXiv 1910.04732). Both
    lambdas start at zero and are trained by the optimizer of the gates at their learning rate, as in that program. If
    each kind of attention has a budget, it has its own lambdas.

    Differences from CoFi: CoFi also prunes whole layers and hidden dimensions, and counts sparsity in parameters; here
    it is counted in heads or neurons, or with gates on both in the cost for which they compete. CoFi distills from the
    dense model, which is not part of an objective here. And CoFi ends near its target; here the heads and neurons with
    the largest ``log_alpha`` that meet the budget stay.

    Attributes:
        lambda_1, lambda_2: Multipliers, ``[num_parts]``.
        target_sparsity: ``t`` of each part, ``[num_parts]``.
    """

    target_sparsity: Tensor
    _weights: Tensor

    def __init__(self, **budget: Any) -> None:
        """Set the target; the arguments are those of :class:`~gating.objectives.ExactBudget`.

        The schedule is the rise of the target; before its start there is no penalty.
        """
        super().__init__(**budget)
        self._set_up(num_parts=1)
        self._started = False

    def attach(self, gates: HeadGates) -> None:
        """Start with multipliers of zero for each part of the gates with a budget."""
        super().attach(gates)
        parts = self._parts
        self._set_up(num_parts=len(parts))
        self._started = False
        weights = torch.zeros(len(parts), gates.log_alpha.numel())
        for row, part in zip(weights, parts, strict=True):
            row[list(part.gates)] = torch.tensor(part.sizes, dtype=torch.float32)
        self.register_buffer("_weights", weights, persistent=False)
        if self._budget.uniform:
            gates.constraint = EqualLayers(parts).to(gates.log_alpha.device)
        if not gates.log_alpha.is_meta:
            self.to(gates.log_alpha.device)

    def update(self, gates: HeadGates, progress: float) -> None:
        """Set the target for this share of the search."""
        super().update(gates, progress)
        # Gates start with a probability of 0.98. A higher target would make the multipliers open them first.
        limits = self._limits(progress, total=0.98)
        for index, (part, limit) in enumerate(zip(self._parts, limits, strict=True)):
            self.target_sparsity[index] = 1 - limit / part.total
        self._started = progress >= self._schedule.earliest

    def penalty(self, gates: HeadGates) -> Tensor:
        """Return ``lambda_1 (s - t) + lambda_2 (s - t)^2``, a scalar; zero before the start."""
        self.check_search(gates)
        # A product, not a constant: distributed training needs a gradient of every parameter.
        factor = 1.0 if self._started else 0.0
        expected_open = (gates.prob_open() * self._weights).sum(dim=1)
        missed = 1 - expected_open / self._weights.sum(dim=1) - self.target_sparsity
        return factor * (self.lambda_1 * missed + self.lambda_2 * missed**2).sum()

    def target(self, gates: HeadGates) -> float:
        """Return the number of heads or neurons that should be open now; with gates on both, the share of cost."""
        self.check_search(gates)
        shares = (1 - self.target_sparsity).tolist()
        return self._amount([share * part.total for share, part in zip(shares, self._parts, strict=True)])

    def _set_up(self, *, num_parts: int) -> None:
        """Start with multipliers and targets of zero."""
        present = [getattr(self, name, None) for name in ("lambda_1", "lambda_2")]
        if any(one is None or one.is_meta or one.is_inference() or len(one) != num_parts for one in present):
            self.lambda_1 = nn.Parameter(torch.zeros(num_parts))
            self.lambda_2 = nn.Parameter(torch.zeros(num_parts))
        # The same parameters in a second search: an optimizer may have them.
        for multiplier in (self.lambda_1, self.lambda_2):
            multiplier.data.zero_()
            multiplier.grad = None
        self.register_buffer("target_sparsity", torch.zeros(num_parts))
