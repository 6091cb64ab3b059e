"""Gates on the columns of a weight, which are cheaper than gates on the features that the weight multiplies.

A down projection has four times as many inputs as outputs, so that scaling its input takes some 5 percent of a
feed-forward block's time, and as much memory as the input. With ``W`` of shape ``[outputs, inputs]``,
``(x * scale) W^T = x (W * scale)^T``, and a batch has more tokens than the layer has outputs.
"""

from typing import Any

from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from gating.loader.modules import original_class, subclass

__all__ = ["WeightGate", "can_gate_weight"]


def can_gate_weight(projection: nn.Module) -> bool:
    """Return whether to scale the weight of a layer, not its input.

    Adapters see the same features as their layer, so that features are scaled where a layer has any. For a frozen
    weight, the gradient of the scale would be the only reason to compute that of the weight.

    Example:
        >>> can_gate_weight(nn.Linear(4, 2)), can_gate_weight(nn.Linear(4, 2).requires_grad_(False))
        (True, False)
    """
    weight = projection._parameters.get("weight")
    return type(projection) in (nn.Linear, Conv1D) and weight is not None and weight.requires_grad


class WeightGate:
    """The subclass of a layer that scales its weight by the gates of its submodule ``gate``, as a removable handle."""

    def __init__(self, projection: nn.Module) -> None:
        """Change the class of a layer, in place."""
        self._projection = projection
        projection.__class__ = subclass(type(projection), _scaled)

    def remove(self) -> None:
        """Change the class of the layer back, in place."""
        self._projection.__class__ = original_class(type(self._projection))


def _scaled(base: Any) -> dict[str, Any]:
    """Return the members of a subclass of ``nn.Linear`` or ``Conv1D`` that multiplies its inputs by gates."""
    is_transposed = issubclass(base, Conv1D)

    def forward(self: Any, features: Tensor) -> Tensor:
        if features.numel() <= self.weight.numel():
            output: Tensor = base.forward(self, self.gate(features))
            return output
        weight = self.weight.t() if is_transposed else self.weight
        return functional.linear(features, self.gate(weight), self.bias)

    return {"forward": forward}
