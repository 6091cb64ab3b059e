"""Gates: their distribution, their value in one forward pass, their place in the model."""

from gating.gates.gates import HeadGates
from gating.gates.inject import create_gates, inject_gates

__all__ = ["HeadGates", "create_gates", "inject_gates"]
