"""How is a head gated? The distribution of a gate, its value in one forward pass, its place in the model."""

from gating.gates.gates import HeadGates
from gating.gates.inject import create_gates, inject_gates

__all__ = ["HeadGates", "create_gates", "inject_gates"]
