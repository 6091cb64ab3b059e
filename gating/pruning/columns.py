"""Columns of output projections, scaled by gates or set to zero for padding heads."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from gating.structure.edits import Edit, Features, Rewrite, weight_dim, without_adapter

__all__ = ["plan_scale_inputs", "silence_inputs"]


def plan_scale_inputs(linear: nn.Module, scale: Tensor) -> list[Edit]:
    """Plan to give a layer, for an input, the outputs that it has for ``input * scale``.

    Args:
        linear: The layer.
        scale: Factors, ``[inputs]``. Nothing is planned if all are 1.
    """
    dim = weight_dim(linear, "inputs")

    def multiply(before: nn.Parameter) -> tuple[nn.Parameter, Callable[[nn.Parameter], nn.Parameter]]:
        index = (scale != 1).nonzero().flatten().to(before.device)
        lost = before.detach().index_select(dim, index)
        factors = scale.to(before)[index].unsqueeze(1 - dim)

        def replace(parameter: nn.Parameter, columns: Tensor) -> nn.Parameter:
            weight = parameter.detach().clone().index_copy_(dim, index, columns)
            return nn.Parameter(weight, requires_grad=parameter.requires_grad)

        return replace(before, lost * factors), lambda parameter: replace(parameter, lost)

    return [Rewrite(linear, "weight", multiply)] if (scale != 1).any() else []


def silence_inputs(linear: nn.Module, inputs: Features) -> None:
    """Set the weight of some inputs of a layer to zero, in place."""
    linear = without_adapter(linear)
    weight = linear.weight
    assert isinstance(weight, nn.Parameter)
    with torch.no_grad():
        weight.index_fill_(weight_dim(linear, "inputs"), inputs.index().to(weight.device), 0.0)
