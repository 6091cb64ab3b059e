"""Columns of output projections, scaled by gates or set to zero for padding heads."""

from dataclasses import dataclass

from torch import Tensor, nn

from gating.loader.changes import weight_dim, without_adapter
from gating.proof.undo import EntriesEdit
from gating.structure.blocks import Block
from gating.structure.edits import Edit, Features, fill, whole
from gating.units import unit_of

__all__ = ["ScaleEntries", "plan_scale_features", "silence_inputs"]


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
        factors = self.factors.to(before)[index]
        factors = factors.reshape([-1 if dim == self.dim else 1 for dim in range(before.dim())])
        values = before.detach().clone()
        values.index_copy_(self.dim, index, before.detach().index_select(self.dim, index) * factors)
        setattr(self.owner, self.attribute, nn.Parameter(values, requires_grad=before.requires_grad))


def plan_scale_features(block: Block, scale: Tensor) -> list[Edit]:
    """Plan to give a block the outputs that it has if its features, which gates multiply, are multiplied by ``scale``.

    Args:
        block: The block.
        scale: Factors, ``[sum(slot_widths)]``. Nothing is planned if all are 1.
    """
    module, name, dim = block.input_weight
    if (scale == 1).all():
        return []
    edits: list[Edit] = [ScaleEntries(module, name, scale, dim)]
    for other, factors in unit_of(block).other_inputs(block, scale):
        linear = without_adapter(other)
        edits.append(ScaleEntries(linear, "weight", factors, weight_dim(linear, "inputs")))
    return edits


def silence_inputs(linear: nn.Module, inputs: Features) -> None:
    """Set the weight of some inputs of a layer to zero, in place."""
    linear = without_adapter(linear)
    weight = linear.weight
    assert isinstance(weight, nn.Parameter)
    index = inputs.index().to(weight.device)
    fill(weight, whole(weight.detach()).index_fill(weight_dim(linear, "inputs"), index, 0.0))
