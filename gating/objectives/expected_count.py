"""The constraint of the exact budget: one offset of all gates, so that their expected number or cost is a target."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from gating.gates import hard_concrete

__all__ = ["ExpectedCount", "OpenPrices", "solve_offset"]

# Intervals of the grids of the search for the offset, and number of grids; coarser ones where gates cost more time than
# operations.
_GRIDS, _GRIDS_OF_MANY = (100, 3), (16, 5)
_MANY_GATES = 2048


class ExpectedCount(nn.Module):
    """A constraint that shifts all ``log_alpha`` by one offset, so that the expected number of open heads is a target.

    With ``p_i(c) = sigmoid(log_alpha_i - c - beta log(-gamma / zeta))`` and ``w_i`` the weight of a gate, the offset
    ``c`` solves ``sum_i w_i p_i(c) = target``. It is the Lagrange multiplier of the budget, solved for instead of
    learned: gates compete, since one can open only as others close. Weights are numbers of heads, or the neurons or
    the cost of each gate over their mean.

    Attributes:
        target: Expected sum of the weights of open gates, a scalar buffer.
        weights: Weight of each gate, ``[num_gates]``.
        sharpness: Factor of ``log_alpha`` before the shift, a scalar buffer; a large one leaves no gate undecided.
        prices: Prices of open blocks; None without them.
        decided: With prices, the locations of gates that are decided, ``[num_gates]``; zeros before.

    Example:
        >>> budget = ExpectedCount(1.5, temperature=2 / 3, stretch_limits=(-0.1, 1.1))
        >>> shifted = budget(torch.tensor([-1.0, 0.0, 2.0]))
        >>> round(hard_concrete.prob_open(shifted).sum().item(), 3)
        1.5
    """

    target: Tensor
    weights: Tensor
    sharpness: Tensor
    decided: Tensor

    def __init__(
        self,
        target: float,
        *,
        temperature: float,
        stretch_limits: tuple[float, float],
        weights: Sequence[float] = (1,),
        prices: "OpenPrices | None" = None,
    ) -> None:
        """Set the target.

        Args:
            target: Expected sum of the weights of open gates.
            temperature: ``beta`` of the gates.
            stretch_limits: ``(gamma, zeta)`` of the gates.
            weights: Weight of each gate, or one weight for all.
            prices: Prices of open blocks, in the unit of the weights.
        """
        super().__init__()
        self.prices = prices
        self.register_buffer("decided", torch.zeros(len(weights)), persistent=prices is not None)
        self.register_buffer("weights", torch.tensor(weights, dtype=torch.float32), persistent=False)
        self.register_buffer("target", torch.tensor(float(target)))
        # A buffer, since a number would be another graph for torch.compile; it follows from the progress.
        self.register_buffer("sharpness", torch.tensor(1.0), persistent=False)
        self.temperature = temperature
        self.stretch_limits = stretch_limits

    def forward(self, log_alpha: Tensor) -> Tensor:
        """Return the shifted locations, ``[num_gates]``; differentiable, the offset included."""
        # The factor is not in the gradient, whose norm clips that of all weights.
        log_alpha = log_alpha + (log_alpha * (self.sharpness - 1)).detach()
        shifted = log_alpha - self.offset(log_alpha)
        return shifted if self.prices is None else torch.where(self.decided == 0, shifted, self.decided)

    def offset(self, log_alpha: Tensor) -> Tensor:
        """Solve for the offset ``c``, a scalar, by :func:`solve_offset`."""
        # P(open) is a sigmoid around a threshold. Autocast would compute it in half precision.
        with torch.autocast(device_type=log_alpha.device.type, enabled=False):
            logits = log_alpha.float() - hard_concrete.open_threshold(self.temperature, self.stretch_limits)
            return solve_offset(logits, self.weights, self.target, self.prices)


class OpenPrices(nn.Module):
    """Prices of blocks that are open, which is expected of each by ``1 - prod_i (1 - p_i)`` over its gates.

    Attributes:
        price: Price of each block, ``[num_blocks]``.
        members: 1 for the gates that are in a block and have a cost, ``[num_gates, num_blocks]``.
    """

    price: Tensor
    members: Tensor

    def __init__(self, price: Sequence[float], weights: Sequence[float], block_sizes: Sequence[int]) -> None:
        """Set the prices; gates with a weight of zero, which are padding, open no block."""
        super().__init__()
        has_weight = torch.tensor([weight > 0 for weight in weights], device="cpu")
        sizes = torch.tensor(list(block_sizes), device="cpu")
        block = torch.arange(len(block_sizes), device="cpu").repeat_interleave(sizes)
        members = functional.one_hot(block, len(block_sizes)) * has_weight.unsqueeze(1)
        self.register_buffer("price", torch.tensor(price, dtype=torch.float32), persistent=False)
        self.register_buffer("members", members.float(), persistent=False)

    def forward(self, logits: Tensor) -> Tensor:
        """Return the expected price, ``[...]``, of gates with ``P(open) = sigmoid(logits)``, ``[..., num_gates]``."""
        return -torch.expm1(-functional.softplus(logits) @ self.members) @ self.price

    def slope(self, logits: Tensor) -> Tensor:
        """Return the derivative of :meth:`forward` with respect to one shift of all logits, ``[num_gates]``."""
        closed = torch.exp(-functional.softplus(logits) @ self.members)
        return (closed * self.price) @ (torch.sigmoid(logits) @ self.members)


def solve_offset(logits: Tensor, weights: Tensor, target: Tensor, prices: OpenPrices | None = None) -> Tensor:
    """Solve ``sum_i w_i sigmoid(logit_i - c) = target`` for ``c``: a search without gradient, then one Newton step.

    With prices, the expected price of open blocks is a part of the sum.

    The derivative of the Newton step, ``dc / d logit_i = w_i p_i' / sum_j w_j p_j'``, is that of the implicit function.

    Args:
        logits: Shape ``[num_gates]``, any floating dtype.
        weights: Weight of each gate, ``[num_gates]``, or one weight for all, ``[1]``.
        target: A scalar between zero and the sum of the weights and prices.
        prices: Prices of open blocks.

    Returns:
        ``c``, a scalar; differentiable with respect to the logits.

    Example:
        >>> round(solve_offset(torch.full((4,), 3.0), torch.ones(1), torch.tensor(2.0)).item(), 3)
        3.0
    """
    start = _search(logits.detach(), weights, target, prices)
    shifted = logits - start
    probs = torch.sigmoid(shifted)
    spent = (probs * weights).sum()
    with torch.no_grad():
        slope = (probs * (1 - probs) * weights).sum()
    if prices is not None:
        spent, slope = spent + prices(shifted), slope + prices.slope(shifted.detach())
    return start + (spent - target) / slope.clamp_min(1e-6)


@torch.no_grad()
def _search(logits: Tensor, weights: Tensor, target: Tensor, prices: OpenPrices | None) -> Tensor:
    """Return the offset to about 1e-4 for logits within a hundred of each other.

    Each of several grids divides the interval of the one before. Bisection would take more operations, and a test of
    convergence would wait for the device.
    """
    num_intervals, num_rounds = _GRIDS if logits.numel() < _MANY_GATES else _GRIDS_OF_MANY
    points = torch.arange(num_intervals + 1, device=logits.device, dtype=logits.dtype)
    smallest, largest = logits.aminmax()
    low, width = smallest - 20.0, (largest - smallest + 40.0) / num_intervals
    for _ in range(num_rounds):
        shifted = logits - (low + width * points).unsqueeze(1)
        counts = (torch.sigmoid(shifted) * weights).sum(dim=1)
        if prices is not None:
            counts = counts + prices(shifted)
        # The last interval whose left end has too many open gates.
        low = low + width * (counts[1:] > target).sum().clamp(max=num_intervals - 1)
        width = width / num_intervals
    return low + width * (num_intervals / 2)
