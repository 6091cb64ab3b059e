"""The constraint of the exact budget: one offset of the gates of a part, with which their expected size is a target."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gating.gates import hard_concrete
from gating.objectives.parts import Part, by_rank

# Intervals of the grids of the search for the offset, and number of grids; coarser ones where gates cost more time than
# operations.
_GRIDS, _GRIDS_OF_MANY = (100, 3), (16, 5)
_MANY_GATES = 2048


class ExpectedCount(nn.Module):
    """A constraint that shifts ``log_alpha`` by one offset, so that the expected number of open heads is a target.

    With ``p_i(c) = sigmoid(log_alpha_i - c - beta log(-gamma / zeta))`` and ``w_i`` the weight of a gate, the offset
    ``c`` solves ``sum_i w_i p_i(c) = target``. It is the Lagrange multiplier of the budget, solved for instead of
    learned: gates compete, since one can open only as others close. Weights are numbers of heads, or the neurons or the
    cost of each gate over their mean. Gates of several parts have an offset for each.

    Attributes:
        target: Expected sum of the weights of the open gates of each part, a buffer, ``[num_parts]``.
        sharpness: Factor of ``log_alpha`` before the shift, a scalar buffer; a large one leaves no gate undecided.
    """

    target: Tensor
    weights: Tensor
    sharpness: Tensor
    part_of_gate: Tensor

    def __init__(
        self,
        target: Sequence[float],
        *,
        temperature: float,
        stretch_limits: tuple[float, float],
        weights: Sequence[float] = (1,),
        part_of_gate: Sequence[int] = (0,),
    ) -> None:
        """Set the targets; ``weights`` and ``part_of_gate`` are those of each gate, or one for all."""
        super().__init__()
        self.register_buffer("weights", torch.tensor(weights, dtype=torch.float32), persistent=False)
        self.register_buffer("target", torch.tensor(target, dtype=torch.float32))
        # A buffer, since a number would be another graph for torch.compile; it follows from the progress.
        self.register_buffer("sharpness", torch.tensor(1.0), persistent=False)
        self.register_buffer("part_of_gate", torch.tensor(part_of_gate), persistent=False)
        for number in range(len(target)):
            gates = [gate for gate, part in enumerate(part_of_gate) if part == number]
            self.register_buffer(f"gates_{number}", torch.tensor(gates), persistent=False)
        self.temperature = temperature
        self.stretch_limits = stretch_limits

    def forward(self, log_alpha: Tensor) -> Tensor:
        """Return the shifted locations, ``[num_gates]``; differentiable, the offsets included."""
        # The factor is not in the gradient, whose norm clips that of all weights.
        log_alpha = log_alpha + (log_alpha * (self.sharpness - 1)).detach()
        return log_alpha - self.offset(log_alpha)

    def offset(self, log_alpha: Tensor) -> Tensor:
        """Solve for the offsets ``c`` by :func:`solve_offset`: one, ``[1]``, or that of each gate, ``[num_gates]``."""
        # P(open) is a sigmoid around a threshold. Autocast would compute it in half precision.
        with torch.autocast(device_type=log_alpha.device.type, enabled=False):
            logits = log_alpha.float() - hard_concrete.open_threshold(self.temperature, self.stretch_limits)
            if len(self.target) == 1:
                return solve_offset(logits, self.weights, self.target)
            gates = [self.get_buffer(f"gates_{number}") for number in range(len(self.target))]
            offsets = [
                solve_offset(logits[own], self.weights[own], target)
                for own, target in zip(gates, self.target.split(1), strict=True)
            ]
            return torch.cat(offsets)[self.part_of_gate]


class EqualLayers(nn.Module):
    """A constraint that makes all blocks of a kind keep equally many: by rank, gates get the mean location over blocks.

    The best gate of each block gets the mean of the best ones, and so on, so that only ranks within a block matter. The
    gradient of each location passes unchanged.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        """Store the gates of parts whose layers keep equally many."""
        super().__init__()
        matrices = [torch.tensor(part.gates)[matrix] for part in parts for matrix in part.matrices]
        self._num_matrices = len(matrices)
        for index, gates in enumerate(matrices):
            self.register_buffer(f"gates_{index}", gates, persistent=False)

    def forward(self, log_alpha: Tensor) -> Tensor:
        """Return the constrained locations, ``[num_gates]``; those of padding are unchanged."""
        own = log_alpha.detach()
        means = own.clone()
        for index in range(self._num_matrices):
            gates = by_rank(self.get_buffer(f"gates_{index}"), own)
            means[gates] = own[gates].mean(dim=0).expand(gates.shape)
        return log_alpha + (means - own)


def solve_offset(logits: Tensor, weights: Tensor, target: Tensor) -> Tensor:
    """Solve ``sum_i w_i sigmoid(logit_i - c) = target`` for ``c``: a search without gradient, then one Newton step.

    The derivative of the Newton step, ``dc / d logit_i = w_i p_i' / sum_j w_j p_j'``, is that of the implicit function.
    The target is a scalar or ``[1]``, between zero and the sum of the weights, ``[num_gates]`` or ``[1]``.
    """
    start = _search(logits.detach(), weights, target)
    probs = torch.sigmoid(logits - start)
    spent = (probs * weights).sum()
    with torch.no_grad():
        slope = (probs * (1 - probs) * weights).sum()
    return start + (spent - target) / slope.clamp_min(1e-6)


@torch.no_grad()
def _search(logits: Tensor, weights: Tensor, target: Tensor) -> Tensor:
    """Return the offset to about 1e-4 for logits within a hundred of each other.

    Each of several grids divides the interval of the one before. Bisection would take more operations, and a test of
    convergence would wait for the device.
    """
    num_intervals, num_rounds = _GRIDS if logits.numel() < _MANY_GATES else _GRIDS_OF_MANY
    points = torch.arange(num_intervals + 1, device=logits.device, dtype=logits.dtype)
    smallest, largest = logits.aminmax()
    low, width = smallest - 20.0, (largest - smallest + 40.0) / num_intervals
    for _ in range(num_rounds):
        counts = (torch.sigmoid(logits - (low + width * points).unsqueeze(1)) * weights).sum(dim=1)
        # The last interval whose left end has too many open gates.
        low = low + width * (counts[1:] > target).sum().clamp(max=num_intervals - 1)
        width = width / num_intervals
    return low + width * (num_intervals / 2)
