"""A fixed price on every open gate (Louizos et al. 2018; Voita et al. 2019, arXiv 1905.09418)."""

import math

import torch
from torch import Tensor

from gating.errors import InputError
from gating.gates import HeadGates
from gating.gates.hard_concrete import are_numbers
from gating.objectives.base import Objective
from gating.objectives.budget import HeadBudget
from gating.objectives.costs import Costs

__all__ = ["FixedPrice"]


class FixedPrice(Objective):
    """An objective that adds ``price * expected share of open gates`` to the loss.

    The share, not the number, so that a price means the same for models of any size. With gates on neurons it is the
    share of neurons, and with gates on both the share of their cost. The number of heads that stay is not known
    beforehand.
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
