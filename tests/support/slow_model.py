"""A model that takes a given time on a fake clock."""

from typing import Any

import torch
from torch import Tensor, nn


class Slow(nn.Module):
    """A model that takes a given time on the fake clock and records its mode in each pass."""

    def __init__(self, clock: list[float], seconds: float) -> None:
        """Args: ``clock`` has the present time, and ``seconds`` is the time of a pass of any batch."""
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.clock, self.seconds = clock, seconds
        self.modes: list[tuple[bool, bool]] = []

    def forward(self, x: Tensor) -> Any:
        """Advance the clock."""
        self.clock[0] += self.seconds
        self.modes.append((self.training, torch.is_grad_enabled()))
