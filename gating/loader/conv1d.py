"""GPT-2's ``Conv1D`` without inputs or outputs, whose own ``forward`` cannot infer such a shape."""

from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from .classes import part

__all__ = ["narrow_conv1d"]


@part
def narrow_conv1d(_base: type[nn.Module]) -> dict[str, Any]:
    """Return the members of a subclass of ``Conv1D`` that may have a width of zero."""

    def forward(self: Any, features: Tensor) -> Tensor:
        return functional.linear(features, self.weight.t(), self.bias)

    return {"forward": forward}
