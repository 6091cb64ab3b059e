"""Edits that keep the values of heads and neurons, and tensors that are cut over processes."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from gating.loader.changes import (
    Change,
    Side,
    parameter_names,
    set_attribute,
    size_attributes,
    weight_dim,
)
from gating.loader.conv1d import empty_linear

__all__ = [
    "Edit",
    "Features",
    "SetAttribute",
    "TakeEntries",
    "fill",
    "own_part",
    "plan_cut",
    "plan_cut_at",
    "plan_entries",
    "set_all",
    "whole",
]


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


def set_all(changes: Iterable[Change]) -> list[Edit]:
    """Return changes of attributes as edits."""
    return [SetAttribute(*change) for change in changes]


def plan_cut(linear: nn.Module, kept: Features, *, side: Side, silent: Features | None = None) -> list[Edit]:
    """Plan to keep some inputs or outputs of a linear layer; the weight of the silent ones among them becomes zero.

    Example:
        >>> layer = nn.Linear(4, 2)
        >>> for edit in plan_cut(layer, Features([1], 2), side="inputs"):
        ...     edit.apply()
        >>> layer
        Linear(in_features=2, out_features=2, bias=True)
    """
    weight, bias = parameter_names(linear)
    edits: list[Edit] = [
        TakeEntries(linear, weight, kept, weight_dim(linear, side), silent),
        *set_all(size_attributes(linear, len(kept), side)),
    ]
    if side == "outputs" and getattr(linear, bias) is not None:
        edits.append(TakeEntries(linear, bias, kept, 0))
    return edits


def plan_cut_at(owner: nn.Module, path: str, kept: Features, *, side: Side) -> list[Edit]:
    """Plan the cut of the layer at a path of a module; a Conv1D of width zero becomes a linear layer."""
    layer = owner.get_submodule(path)
    if len(kept) or not isinstance(layer, Conv1D):
        return plan_cut(layer, kept, side=side)
    holder, _, attribute = path.rpartition(".")
    return [SetAttribute(owner.get_submodule(holder), attribute, empty_linear(layer, side=side))]


def plan_entries(owner: nn.Module, name: str, kept: Sequence[int], *, dim: int, num_before: int) -> Edit:
    """Plan to keep the entries of some of several heads in a parameter, or their modules in a list."""
    value = getattr(owner, name)
    if isinstance(value, nn.ModuleList):
        return SetAttribute(owner, name, nn.ModuleList([value[head] for head in kept]))
    return TakeEntries(owner, name, Features(kept, value.shape[dim] // num_before), dim)


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
