"""No gates: ordinary fine-tuning through the same code, to compare with."""

from torch import nn

__all__ = ["NoObjective"]


class NoObjective(nn.Module):
    """Train without gates and keep every head."""
