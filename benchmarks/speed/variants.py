"""Other ways to multiply heads by gates, to compare with gating.gates."""

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional

import gating

__all__ = ["VARIANTS"]


def _by_input(gates: gating.HeadGates) -> None:
    """Leave the gates as they are: a pre-hook scales the input of the output projection."""


def _by_weight(gates: gating.HeadGates) -> None:
    """Scale the columns of the output projection's weight instead; works for nn.Linear alone."""
    for index, projection in enumerate(_without_hooks(gates)):
        projection.forward = _ScaledWeight(gates, index, projection)


def _by_wrapper(gates: gating.HeadGates) -> None:
    """Scale the input, in a forward of the projection's own instead of in a hook."""
    for index, projection in enumerate(_without_hooks(gates)):
        projection.forward = _ScaledInput(gates, index, projection.forward)


VARIANTS: dict[str, Callable[[gating.HeadGates], None]] = {
    "input": _by_input,
    "weight": _by_weight,
    "wrapper": _by_wrapper,
}


def _without_hooks(gates: gating.HeadGates) -> list[nn.Module]:
    assert gates.attachment is not None
    for handle in gates.attachment.gate_handles:
        handle.remove()
    return gates.attachment.projections


class _ScaledWeight:
    def __init__(self, gates: gating.HeadGates, index: int, projection: nn.Module) -> None:
        self.gates, self.index, self.projection = gates, index, projection

    def __call__(self, heads: Tensor) -> Tensor:
        weight = self.projection.weight
        scaling = self.gates.pass_values.scaling(self.index, weight)
        return functional.linear(heads, weight * scaling, self.projection.bias)


class _ScaledInput:
    def __init__(self, gates: gating.HeadGates, index: int, forward: Callable[[Tensor], Tensor]) -> None:
        self.gates, self.index, self.forward = gates, index, forward

    def __call__(self, heads: Tensor) -> Tensor:
        return self.forward(heads * self.gates.pass_values.scaling(self.index, heads))
