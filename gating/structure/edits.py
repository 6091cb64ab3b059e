"""Planned changes to a model, the cutting of linear layers, and hooks on their inputs.

``nn.Linear`` keeps its weight as ``[outputs, inputs]``; GPT-2's ``Conv1D`` as ``[inputs, outputs]``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Literal, Protocol

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

__all__ = [
    "ABSENT",
    "Edit",
    "Features",
    "Handle",
    "Handles",
    "SetAttribute",
    "TakeEntries",
    "fill",
    "hook_input",
    "num_inputs",
    "num_outputs",
    "own_part",
    "parameter_names",
    "plan_cut",
    "plan_cut_at",
    "plan_entries",
    "set_attribute",
    "whole",
    "weight_dim",
    "without_adapter",
]

Side = Literal["inputs", "outputs"]
_CHANNELS = ("in_channels", "out_channels", "groups")


class _Absent:
    """The value of an attribute that does not exist."""


ABSENT: Final = _Absent()


@dataclass(frozen=True)
class Edit:
    """A planned change of one attribute. All checks of a removal come before the first of its edits is applied."""

    owner: Any
    attribute: str

    def apply(self) -> None:
        """Change the attribute."""
        raise NotImplementedError


@dataclass(frozen=True)
class SetAttribute(Edit):
    """The planned assignment ``owner.attribute = value``; with the value :data:`ABSENT`, a deletion."""

    value: object

    def apply(self) -> None:
        """Assign the value."""
        set_attribute(self.owner, self.attribute, self.value)


@dataclass(frozen=True)
class Features:
    """Inputs or outputs of a layer in runs of one width, such as those of some heads."""

    runs: Sequence[int]
    width: int

    def __len__(self) -> int:
        return len(self.runs) * self.width

    def index(self) -> Tensor:
        """Return the positions of the features, ``[len(self)]``, on the CPU even where models are built on meta."""
        starts = torch.tensor(self.runs, dtype=torch.long, device="cpu").unsqueeze(1) * self.width
        return (starts + torch.arange(self.width, device="cpu")).flatten()


@dataclass(frozen=True)
class TakeEntries(Edit):
    """The planned reduction of a parameter to some entries along one dimension; the silent ones become zero."""

    kept: Features
    dim: int
    silent: Features | None = None

    def apply(self) -> None:
        """Replace the parameter."""
        before = getattr(self.owner, self.attribute)
        if before.is_meta:
            shape = [len(self.kept) if dim == self.dim else size for dim, size in enumerate(before.shape)]
            values = before.detach().new_empty(shape)
        else:
            values = before.detach().index_select(self.dim, self.kept.index().to(before.device))
            if self.silent is not None:
                values.index_fill_(self.dim, self.silent.index().to(before.device), 0.0)
        setattr(self.owner, self.attribute, nn.Parameter(values, requires_grad=before.requires_grad))


def set_attribute(owner: object, attribute: str, value: object) -> None:
    """Set an attribute, or delete it where the value is :data:`ABSENT`."""
    if not isinstance(value, _Absent):
        setattr(owner, attribute, value)
    elif hasattr(owner, attribute):
        delattr(owner, attribute)


def plan_cut(linear: nn.Module, kept: Features, *, side: Side, silent: Features | None = None) -> list[Edit]:
    """Plan to keep some inputs or outputs of a linear layer; the weight of the silent ones among them becomes zero.

    Example:
        >>> layer = nn.Linear(4, 2)
        >>> for edit in plan_cut(layer, Features([1], 2), side="inputs"):
        ...     edit.apply()
        >>> layer
        Linear(in_features=2, out_features=2, bias=True)
    """
    size_names = ("nx", "nf") if isinstance(linear, Conv1D) else ("in_features", "out_features")
    # In a convolution of each channel for itself, the outputs are the inputs.
    changed = _CHANNELS if isinstance(linear, nn.Conv1d) else (size_names[side == "outputs"],)
    weight, bias = parameter_names(linear)
    edits: list[Edit] = [
        TakeEntries(linear, weight, kept, weight_dim(linear, side), silent),
        *(SetAttribute(linear, name, len(kept)) for name in changed if hasattr(linear, name)),
    ]
    if side == "outputs" and getattr(linear, bias) is not None:
        edits.append(TakeEntries(linear, bias, kept, 0))
    return edits


def parameter_names(linear: nn.Module) -> tuple[str, str]:
    """Return the names of a layer's weight and bias; ``nn.MultiheadAttention`` projects its inputs itself."""
    return ("in_proj_weight", "in_proj_bias") if isinstance(linear, nn.MultiheadAttention) else ("weight", "bias")


def plan_cut_at(owner: nn.Module, path: str, kept: Features, *, side: Side) -> list[Edit]:
    """Plan the cut of the layer at a path of a module; a Conv1D of width zero becomes a linear layer."""
    layer = owner.get_submodule(path)
    if len(kept) or not isinstance(layer, Conv1D):
        return plan_cut(layer, kept, side=side)
    holder, _, attribute = path.rpartition(".")
    return [SetAttribute(owner.get_submodule(holder), attribute, _empty_linear(layer, side=side))]


def plan_entries(owner: nn.Module, name: str, kept: Sequence[int], *, dim: int, num_before: int) -> Edit:
    """Plan to keep the entries of some of several heads in a parameter, or their modules in a list."""
    value = getattr(owner, name)
    if isinstance(value, nn.ModuleList):
        return SetAttribute(owner, name, nn.ModuleList([value[head] for head in kept]))
    return TakeEntries(owner, name, Features(kept, value.shape[dim] // num_before), dim)


def num_inputs(linear: nn.Module) -> int:
    """Return the width of a linear layer's input, read from its weight."""
    return _width(without_adapter(linear), "inputs")


def num_outputs(linear: nn.Module) -> int:
    """Return the width of a linear layer's output, read from its weight."""
    return _width(without_adapter(linear), "outputs")


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor that FSDP2 has cut over several processes as a plain one; a plain tensor as it is."""
    gather = getattr(tensor, "full_tensor", None)
    return tensor if gather is None else gather()


def own_part(tensor: Tensor) -> Tensor:
    """Return the part of a tensor that this process has, if FSDP2 has cut it; a plain tensor as it is."""
    part = getattr(tensor, "to_local", None)
    return tensor if part is None else part()


def fill(parameter: Tensor, values: Tensor) -> None:
    """Give a parameter the values of a tensor of its shape, in place; one that is cut gets its part in each process.

    Args:
        parameter: The parameter, which FSDP2 may have cut over several processes.
        values: A plain tensor, equal in all of them.
    """
    target: Any = parameter
    if hasattr(target, "full_tensor"):
        # Not at the top: some builds of torch have no distributed tensors.
        from torch.distributed.tensor import distribute_tensor

        values = values.to(target.device)
        # Without a source rank, nothing is sent.
        shard = distribute_tensor(values, target.device_mesh, target.placements, src_data_rank=None)
        target, values = target.to_local(), shard.to_local()
    with torch.no_grad():
        target.copy_(values)


def without_adapter(linear: nn.Module) -> nn.Module:
    """Return the layer that an adapter, such as LoRA's, wraps; a layer without adapter as it is."""
    inner = getattr(linear, "base_layer", None)
    return without_adapter(inner) if isinstance(inner, nn.Module) else linear


def weight_dim(linear: nn.Module, side: Side) -> int:
    """Return the dimension of a layer's weight that belongs to its inputs or outputs."""
    return int((side == "inputs") != isinstance(linear, Conv1D))


class Handle(Protocol):
    """A handle of a hook."""

    def remove(self) -> None:
        """Remove the hook."""


@dataclass(frozen=True)
class Handles:
    """Two handles that are removed together."""

    first: Handle
    second: Handle

    def remove(self) -> None:
        """Remove both hooks."""
        self.first.remove()
        self.second.remove()


def hook_input(layer: nn.Module, function: Callable[[Tensor], Tensor | None]) -> Handle:
    """Call a function on the first input of a layer before each use; a result other than None replaces the input.

    Args:
        layer: The layer.
        function: For models that are copied with their hooks, a module.

    Example:
        >>> layer = nn.Identity()
        >>> handle = hook_input(layer, torch.neg)
        >>> layer(torch.tensor([1.0]))
        tensor([-1.])
        >>> handle.remove()
    """
    return layer.register_forward_pre_hook(partial(_replace_input, function))


def _replace_input(
    function: Callable[[Tensor], Tensor | None], _layer: nn.Module, inputs: tuple[Tensor, ...]
) -> tuple[Tensor, ...] | None:
    first, *others = inputs
    replacement = function(first)
    return None if replacement is None else (replacement, *others)


def _width(linear: Any, side: Side) -> int:
    weight = getattr(linear, parameter_names(linear)[0], None)
    if isinstance(weight, Tensor) and (weight.is_floating_point() or not hasattr(linear, "in_features")):
        return int(weight.shape[weight_dim(linear, side)])
    # A quantized layer, whose weight may be packed: the error that it cannot be edited comes later.
    return int(linear.in_features if side == "inputs" else linear.out_features)


def _empty_linear(layer: Conv1D, *, side: Side) -> nn.Linear:
    """Return a linear layer without inputs or outputs: the forward pass of a Conv1D cannot infer such a shape."""
    num_in, num_out = (0, num_outputs(layer)) if side == "inputs" else (num_inputs(layer), 0)
    # Built with another shape, since initializing weights without elements gives a warning.
    linear = nn.Linear(1, 1, device="meta")
    linear.in_features, linear.out_features = num_in, num_out
    weight, bias = layer.weight, layer.bias
    linear.weight = nn.Parameter(weight.detach().new_empty(num_out, num_in), requires_grad=weight.requires_grad)
    linear.bias = bias if num_out else nn.Parameter(bias.detach()[:0].clone(), requires_grad=bias.requires_grad)
    return linear.train(layer.training)
