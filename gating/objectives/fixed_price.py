"""A fixed price on every open head (Louizos et al. 2018; Voita et al. 2019, arXiv 1905.09418)."""

import math

from torch import Tensor, nn

from gating.errors import InputError
from gating.gates import HeadGates
from gating.objectives.budget import HeadBudget

__all__ = ["FixedPrice"]


class FixedPrice(nn.Module):
    """Add ``price * expected share of open heads`` to the loss; heads that are not worth it close.

    The share, not the number, so that a price means the same for models of any size. How many heads stay is not
    known beforehand.
    """

    def __init__(self, *, price: float = 1.0, start: float = 0.13) -> None:
        """Set the price.

        Args:
            price: What all heads together cost, in units of the task's loss (lambda of Voita et al., equation 8).
            start: Share of the search that passes before heads cost anything.

        Raises:
            ValueError: The price is negative or ``start`` no share.
        """
        super().__init__()
        if not price >= 0:
            raise InputError(f"price={price} must not be negative; 0 leaves every head open.")
        if not 0 <= start <= 1:
            raise InputError(f"start={start} is not a share of the search: give a number from 0 to 1.")
        self._price = price
        self._start = start
        self._started = False

    def check(self, gates: HeadGates) -> None:
        """Accept all gates."""

    def attach(self, gates: HeadGates) -> None:
        """Need nothing of the gates beforehand."""

    def update(self, gates: HeadGates, progress: float) -> None:
        """Charge from the scheduled start on."""
        self._started = progress >= self._start

    def penalty(self, gates: HeadGates) -> Tensor:
        """Return ``price * mean P(open)``; zero before the start."""
        price = self._price if self._started else 0.0
        return price * gates.prob_open().mean()

    def target(self, gates: HeadGates) -> float:
        """Return NaN: a price sets no number."""
        return math.nan

    def kept(self, gates: HeadGates) -> Tensor | None:
        """Return None while gates are open; else keep the last to close, so that the run is not lost."""
        if gates.num_open():
            return None
        last = HeadBudget(num_heads=None, keep=1 / gates.num_heads)
        return last.choose(gates, gates.log_alpha)
