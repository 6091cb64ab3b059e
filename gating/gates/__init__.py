"""What a gate is: its distribution, its place in the model, its value in one forward pass."""

from gating.gates.gates import HeadGates, create_gates, inject_gates

__all__ = ["HeadGates", "create_gates", "inject_gates"]
