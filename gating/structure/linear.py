"""The two kinds of linear layer that attention is built of, and what can be done to them.

``nn.Linear`` keeps its weight as ``[outputs, inputs]``; GPT-2's ``Conv1D`` as ``[inputs, outputs]``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from types import MethodType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from .edits import Edit, Rewritten

__all__ = [
    "Features",
    "num_inputs",
    "num_outputs",
    "plan_scale_inputs",
    "plan_take",
    "plan_take_parameter",
    "silence_inputs",
    "why_not_editable",
    "without_adapter",
]

Side = Literal["inputs", "outputs"]


def num_inputs(linear: nn.Module) -> int:
    """Return the width of a linear layer's input, read from its weight."""
    return _width(without_adapter(linear), "inputs")


def num_outputs(linear: nn.Module) -> int:
    """Return the width of a linear layer's output, read from its weight."""
    return _width(without_adapter(linear), "outputs")


def without_adapter(linear: nn.Module) -> nn.Module:
    """Return the layer that an adapter, such as LoRA's, is wrapped around; a layer without one as it is."""
    inner = getattr(linear, "base_layer", None)
    return without_adapter(inner) if isinstance(inner, nn.Module) else linear


def why_not_editable(linear: nn.Module) -> str | None:
    """Return why rows or columns of a layer cannot be removed, or None if they can."""
    kind = type(linear).__name__
    weight = getattr(linear, "weight", None)
    if isinstance(weight, MethodType):
        return f"it is quantised ({type(linear).__module__}.{kind}): remove heads first and quantise the result"
    if isinstance(weight, Tensor) and not (weight.is_floating_point() and weight.element_size() > 1):
        return f"it is quantised ({kind} with {weight.dtype} weights): remove heads first and quantise the result"
    if not isinstance(linear, (nn.Linear, Conv1D)):
        return f"{kind} is neither nn.Linear nor Conv1D: remove heads before layers are quantised or replaced"
    if type(weight) is not nn.Parameter:
        return (
            f"its weight is no plain parameter but {type(weight).__name__} (quantised, distributed or parametrised): "
            "remove heads before that"
        )
    return None


@dataclass(frozen=True)
class Features:
    """Inputs or outputs of a layer that belong to heads: as many in a row for each."""

    heads: Sequence[int]
    width: int

    def __len__(self) -> int:
        return len(self.heads) * self.width

    def index(self) -> Tensor:
        """Return their numbers; on the CPU, also where models are built on the meta device."""
        starts = torch.tensor(self.heads, dtype=torch.long, device="cpu").unsqueeze(1) * self.width
        return (starts + torch.arange(self.width, device="cpu")).flatten()


def plan_take(linear: nn.Module, kept: Features, *, side: Side, silent: Features | None = None) -> list[Edit]:
    """Plan to keep some inputs or outputs of a linear layer.

    Args:
        linear: The layer.
        kept: The inputs or outputs that stay.
        side: Which of the two.
        silent: Positions among the kept that get zero weight.
    """
    size_names = ("nx", "nf") if isinstance(linear, Conv1D) else ("in_features", "out_features")
    edits = [
        *plan_take_parameter(linear, "weight", kept, dim=_dim(linear, side), silent=silent),
        Edit(linear, size_names[side == "outputs"], lambda: len(kept)),
    ]
    if side == "outputs" and linear.bias is not None:
        edits += plan_take_parameter(linear, "bias", kept, dim=0)
    return edits


def plan_take_parameter(
    holder: nn.Module, name: str, kept: Features, *, dim: int, silent: Features | None = None
) -> list[Edit]:
    """Plan to keep some entries of a parameter along one dimension; the silent ones among them become zero."""

    def take() -> nn.Parameter | Rewritten:
        before = getattr(holder, name)
        if before.is_meta:
            # A model that is built to be loaded into has shapes and nothing to take.
            shape = [len(kept) if d == dim else size for d, size in enumerate(before.shape)]
            return nn.Parameter(before.detach().new_empty(shape), requires_grad=before.requires_grad)
        return _take(before, kept.index(), dim, silent.index() if silent else None)

    return [Edit(holder, name, take)]


def _take(before: nn.Parameter, kept: Tensor, dim: int, silent: Tensor | None) -> Rewritten:
    size = before.shape[dim]
    is_lost = torch.ones(size, dtype=torch.bool, device="cpu").index_fill_(0, kept, False)
    index = kept.to(before.device)
    taken = before.detach().index_select(dim, index)
    if silent is not None:
        taken.index_fill_(dim, silent.to(before.device), 0.0)
        is_lost[kept[silent]] = True
    lost_index = is_lost.nonzero().flatten().to(before.device)
    lost = before.detach().index_select(dim, lost_index)

    def restore(parameter: nn.Parameter) -> nn.Parameter:
        shape = list(lost.shape)
        shape[dim] = size
        whole = lost.new_empty(shape).index_copy_(dim, index, parameter.detach())
        whole.index_copy_(dim, lost_index, lost)
        return nn.Parameter(whole, requires_grad=parameter.requires_grad)

    return Rewritten(nn.Parameter(taken, requires_grad=before.requires_grad), restore)


def silence_inputs(linear: nn.Module, inputs: Features) -> None:
    """Set the weight of some inputs of a layer to zero, in place."""
    linear = without_adapter(linear)
    weight = linear.weight
    assert isinstance(weight, nn.Parameter)
    with torch.no_grad():
        weight.index_fill_(_dim(linear, "inputs"), inputs.index().to(weight.device), 0.0)


def plan_scale_inputs(linear: nn.Module, scale: Tensor) -> list[Edit]:
    """Plan to make a layer do to an input what it does to ``input * scale``; nothing where every scale is 1."""
    dim = _dim(linear, "inputs")

    def multiply() -> Rewritten:
        before = linear.weight
        assert isinstance(before, nn.Parameter)
        index = (scale != 1).nonzero().flatten().to(before.device)
        lost = before.detach().index_select(dim, index)
        factors = scale.to(before)[index].unsqueeze(1 - dim)

        def replace(parameter: nn.Parameter, columns: Tensor) -> nn.Parameter:
            weight = parameter.detach().clone().index_copy_(dim, index, columns)
            return nn.Parameter(weight, requires_grad=parameter.requires_grad)

        return Rewritten(replace(before, lost * factors), lambda parameter: replace(parameter, lost))

    return [Edit(linear, "weight", multiply)] if (scale != 1).any() else []


def _width(linear: Any, side: Side) -> int:
    if isinstance(linear.weight, Tensor):
        return int(linear.weight.shape[_dim(linear, side)])
    # A quantized layer, of which it is said later that it cannot be edited.
    return int(linear.in_features if side == "inputs" else linear.out_features)


def _dim(linear: nn.Module, side: Side) -> int:
    return int((side == "inputs") != isinstance(linear, Conv1D))
