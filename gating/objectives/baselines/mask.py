"""Gates that are simply open or closed, for objectives that decide instead of learning."""

import torch
from torch import Tensor, nn

from gating.gates import HeadGates

__all__ = ["HeadMask", "HostCount"]


class HostCount(nn.Module):
    """A number of heads that is on the host, so that no step waits for it, and in checkpoints nevertheless."""

    def __init__(self, value: int) -> None:
        """Args: ``value`` is the number to start with."""
        super().__init__()
        self.value = value

    def get_extra_state(self) -> Tensor:
        """Return the number for a checkpoint."""
        return torch.tensor(self.value, device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        """Take the number from a checkpoint."""
        self.value = int(state)


class HeadMask(nn.Module):
    """A sampler of gates whose values are a mask that an objective has decided, in training and in evaluation.

    Attributes:
        mask: One for open gates, zero for closed ones, ``[num_gates]``.
        num_open: How many heads are open.
    """

    mask: Tensor

    def __init__(self, gates: HeadGates) -> None:
        """Open every gate."""
        super().__init__()
        self.register_buffer("mask", torch.ones_like(gates.log_alpha, requires_grad=False))
        self.num_open = HostCount(gates.num_heads)

    def fix(self, kept: Tensor, *, num_open: int) -> None:
        """Open the gates that are true in ``kept``, and close the others."""
        self.mask.copy_(kept)
        self.num_open.value = num_open

    def sample(self, log_alpha: Tensor) -> Tensor:
        """Return the mask."""
        return self.mask

    def values(self, log_alpha: Tensor) -> Tensor:
        """Return the mask."""
        return self.mask

    def prob_open(self, log_alpha: Tensor) -> Tensor:
        """Return the mask: nothing is left to chance."""
        return self.mask
