"""Heads by lot: what every other ranking has to beat."""

import torch
from torch import Tensor, nn

from gating.gates import HeadGates

__all__ = ["RandomOrder"]


class RandomOrder(nn.Module):
    """Rank heads in an order that its seed alone decides."""

    def __init__(self, *, seed: int = 0) -> None:
        """Args: ``seed`` is that of the order."""
        super().__init__()
        self._seed = seed

    def attach(self, gates: HeadGates) -> None:
        """Need nothing of the gates beforehand."""

    def scores(self, gates: HeadGates) -> Tensor:
        """Return a number from 0 to 1 for each gate, the same at every call."""
        generator = torch.Generator().manual_seed(self._seed)
        return torch.rand(len(gates.heads_per_gate), generator=generator, device="cpu").to(gates.log_alpha.device)

    def start_over(self, gates: HeadGates) -> None:
        """Stay with the order."""
