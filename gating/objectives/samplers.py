"""Numbers of a search in host memory, and gates that an objective opens and closes itself."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gating.gates import HeadGates
from gating.gates.hard_concrete import GateSampler

__all__ = ["HostNumbers", "MaskSampler"]


class HostNumbers(nn.Module):
    """Numbers such as those of open heads, in host memory, that are in checkpoints, too.

    A buffer would be on the device, and each step would wait for it.

    Attributes:
        values: The numbers.
    """

    def __init__(self, values: Sequence[float]) -> None:
        """Set the first numbers."""
        super().__init__()
        self.values = list(values)

    def get_extra_state(self) -> Tensor:
        """Return the numbers for a checkpoint."""
        return torch.tensor(self.values, dtype=torch.float64, device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        """Load the numbers from a checkpoint."""
        self.values = state.tolist()


class MaskSampler(GateSampler):
    """A sampler that returns the mask of an objective, in training and in evaluation.

    Attributes:
        mask: One for open gates, zero for closed ones, ``[num_gates]``.
        limits: Number of open heads or neurons, or share of the cost of open gates, of each part.
    """

    mask: Tensor

    def __init__(self, gates: HeadGates, limits: Sequence[float]) -> None:
        """Start with every gate open; ``limits`` are the numbers or shares of them."""
        super().__init__()
        self.register_buffer("mask", torch.ones_like(gates.log_alpha, requires_grad=False))
        self.limits = HostNumbers(limits)

    def values(self, log_alpha: Tensor) -> Tensor:
        """Return the mask."""
        return self.mask
