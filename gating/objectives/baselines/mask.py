"""Gates that are open or closed, for objectives that decide instead of learning."""

import torch
from torch import Tensor, nn

from gating.gates import HeadGates
from gating.objectives.budget import whole_amount

__all__ = ["HostCount", "MaskSampler"]


class HostCount(nn.Module):
    """A number of heads or neurons, or a share of cost, in host memory that is in checkpoints, too.

    A buffer would be on the device, and each step would wait for it.

    Attributes:
        value: The number.
    """

    def __init__(self, value: float) -> None:
        """Set the first number."""
        super().__init__()
        self.value = value

    def get_extra_state(self) -> Tensor:
        """Return the number for a checkpoint."""
        return torch.tensor(
            self.value, dtype=torch.int64 if isinstance(self.value, int) else torch.float64, device="cpu"
        )

    def set_extra_state(self, state: Tensor) -> None:
        """Load the number from a checkpoint."""
        self.value = state.item()


class MaskSampler(nn.Module):
    """A sampler that returns the mask of an objective, in training and in evaluation.

    Attributes:
        mask: One for open gates, zero for closed ones, ``[num_gates]``.
        num_open: Number of open heads, or of neurons; the share of the cost of open gates if there are both.
    """

    mask: Tensor

    def __init__(self, gates: HeadGates) -> None:
        """Start with every gate open."""
        super().__init__()
        self.register_buffer("mask", torch.ones_like(gates.log_alpha, requires_grad=False))
        self.num_open = HostCount(whole_amount(gates))

    def fix(self, kept: Tensor, *, num_open: float) -> None:
        """Open the gates of a boolean tensor, ``[num_gates]``, and close the others."""
        self.mask.copy_(kept)
        self.num_open.value = num_open

    def sample(self, log_alpha: Tensor) -> Tensor:
        """Return the mask."""
        return self.mask

    def values(self, log_alpha: Tensor) -> Tensor:
        """Return the mask."""
        return self.mask

    def prob_open(self, log_alpha: Tensor) -> Tensor:
        """Return the mask, as no gate is random."""
        return self.mask
