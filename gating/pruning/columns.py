"""Columns of output projections, scaled by gates or set to zero for padding heads."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gating.discovery.undo import EntriesEdit
from gating.structure.edits import Edit, Features, weight_dim, without_adapter

__all__ = ["ScaleEntries", "plan_scale_inputs", "silence_inputs"]


@dataclass(frozen=True)
class ScaleEntries(EntriesEdit):
    """The planned multiplication of a parameter by one factor for each entry along one dimension."""

    factors: Tensor
    dim: int

    def changed(self) -> Tensor:
        """Return the positions of the entries whose factor is not 1."""
        return (self.factors != 1).nonzero().flatten()

    def apply(self) -> None:
        """Replace the parameter."""
        before = getattr(self.owner, self.attribute)
        index = self.changed().to(before.device)
        factors = self.factors.to(before)[index].unsqueeze(1 - self.dim)
        values = before.detach().clone()
        values.index_copy_(self.dim, index, before.detach().index_select(self.dim, index) * factors)
        setattr(self.owner, self.attribute, nn.Parameter(values, requires_grad=before.requires_grad))


def plan_scale_inputs(linear: nn.Module, scale: Tensor) -> list[Edit]:
    """Plan to give a layer, for an input, the outputs that it has for ``input * scale``.

    Args:
        linear: The layer.
        scale: Factors, ``[inputs]``. Nothing is planned if all are 1.

    Example:
        >>> layer = nn.Linear(2, 1, bias=False)
        >>> _ = nn.init.ones_(layer.weight)
        >>> for edit in plan_scale_inputs(layer, torch.tensor([1.0, 0.5])):
        ...     edit.apply()
        >>> layer.weight.tolist()
        [[1.0, 0.5]]
    """
    return [ScaleEntries(linear, "weight", scale, weight_dim(linear, "inputs"))] if (scale != 1).any() else []


def silence_inputs(linear: nn.Module, inputs: Features) -> None:
    """Set the weight of some inputs of a layer to zero, in place."""
    linear = without_adapter(linear)
    weight = linear.weight
    assert isinstance(weight, nn.Parameter)
    with torch.no_grad():
        weight.index_fill_(weight_dim(linear, "inputs"), inputs.index().to(weight.device), 0.0)
