"""Ordinary fine-tuning with the same code, for comparison."""

import torch
from torch import Tensor, nn

from gating.gates import HeadGates
from gating.objectives.base import begin_search
from gating.objectives.baselines.mask import MaskSampler

__all__ = ["NoObjective"]


class NoObjective(nn.Module):
    """An objective that keeps every head and neuron; a run with it injects no gates."""

    def check(self, gates: HeadGates) -> None:
        """Accept all gates."""

    def attach(self, gates: HeadGates) -> None:
        """Open every gate permanently."""
        begin_search(self, gates)
        gates.log_alpha.requires_grad_(False)
        gates.sampler = MaskSampler(gates, num_open=self.target(gates))

    def update(self, gates: HeadGates, progress: float) -> None:
        """Follow no schedule."""

    def penalty(self, gates: HeadGates) -> Tensor:
        """Return zero."""
        return gates.log_alpha.new_zeros(())

    def target(self, gates: HeadGates) -> float:
        """Return the number of all heads or neurons, or one as the share of cost."""
        return float(gates.total(gates.units[0])) if len(gates.units) == 1 else 1.0

    def kept(self, gates: HeadGates) -> Tensor:
        """Return True for every gate, ``[num_gates]``."""
        return torch.ones_like(gates.log_alpha, dtype=torch.bool)
