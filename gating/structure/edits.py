"""Edits that keep the values of heads and neurons, and can be undone; and tensors that are cut over processes."""

import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from gating.families.linear import Side, parameter_names, size_names, weight_dim
from gating.loader.classes import subclass
from gating.loader.conv1d import narrow_conv1d

__all__ = [
    "ABSENT",
    "Edit",
    "EntriesEdit",
    "Features",
    "SetAttribute",
    "TakeEntries",
    "Undo",
    "apply_edits",
    "fill",
    "own_part",
    "plan_cut",
    "plan_entries",
    "set_all",
    "undo_edits",
    "whole",
]

Undo = Callable[[], None]
# The assignment of a value to an attribute of an object.
Change = tuple[Any, str, Any]


class _Absent:
    """The value of an attribute that does not exist."""


ABSENT: Final = _Absent()


def _set_attribute(owner: object, attribute: str, value: object) -> None:
    """Set an attribute, or delete it where the value is :data:`ABSENT`."""
    if not isinstance(value, _Absent):
        setattr(owner, attribute, value)
    elif hasattr(owner, attribute):
        delattr(owner, attribute)


@dataclass(frozen=True)
class Edit:
    """A planned change of one attribute. All checks of a removal come before the first of its edits is applied."""

    owner: Any
    attribute: str

    def apply(self) -> None:
        """Change the attribute."""
        raise NotImplementedError

    def undo(self) -> Undo:
        """Return the function that undoes the edit, which has not been applied yet."""
        before = getattr(self.owner, self.attribute, ABSENT)
        return lambda: _set_attribute(self.owner, self.attribute, before)


@dataclass(frozen=True)
class SetAttribute(Edit):
    """The planned assignment ``owner.attribute = value``; with the value :data:`ABSENT`, a deletion."""

    value: object

    def apply(self) -> None:
        """Assign the value."""
        _set_attribute(self.owner, self.attribute, self.value)


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

    def undo(self) -> Undo:
        """Return the function that brings the former parameter back."""
        before: nn.Parameter = getattr(self.owner, self.attribute)
        if before.is_meta:
            return super().undo()
        kept = self.kept.index()
        is_lost = torch.ones(before.shape[self.dim], dtype=torch.bool).index_fill_(0, kept, False)
        if self.silent is not None:
            is_lost[kept[self.silent.index()]] = True
        return _restoring(self, before, self.dim, kept=kept, lost=is_lost.nonzero().flatten())


class EntriesEdit(Edit, ABC):
    """An edit that changes some entries of a parameter along one dimension.

    Attributes:
        dim: The dimension.
    """

    dim: int

    @abstractmethod
    def changed(self) -> Tensor:
        """Return the positions of the changed entries."""

    def undo(self) -> Undo:
        """Return the function that brings the former parameter back."""
        before: nn.Parameter = getattr(self.owner, self.attribute)
        everything = torch.arange(before.shape[self.dim])
        return _restoring(self, before, self.dim, kept=everything, lost=self.changed().cpu())


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
        *(SetAttribute(linear, name, len(kept)) for name in size_names(linear, side)),
    ]
    if not len(kept) and isinstance(linear, Conv1D):
        edits.append(SetAttribute(linear, "__class__", subclass(type(linear), (narrow_conv1d,))))
    if side == "outputs" and getattr(linear, bias) is not None:
        edits.append(TakeEntries(linear, bias, kept, 0))
    return edits


def plan_entries(owner: nn.Module, name: str, kept: Sequence[int], *, dim: int, num_before: int) -> Edit:
    """Plan to keep the entries of some of several heads in a parameter, or their modules in a list."""
    value = getattr(owner, name)
    if isinstance(value, nn.ModuleList):
        return SetAttribute(owner, name, nn.ModuleList([value[head] for head in kept]))
    return TakeEntries(owner, name, Features(kept, value.shape[dim] // num_before), dim)


def apply_edits(edits: Iterable[Edit]) -> list[Undo]:
    """Apply edits in place, in order; after an error, the model is as before.

    Returns:
        The functions for :func:`undo_edits`. Dropping them frees the memory of the removed entries.

    Example:
        >>> layer = nn.Linear(4, 2)
        >>> done = apply_edits(plan_cut(layer, Features([1], 2), side="inputs"))
        >>> layer
        Linear(in_features=2, out_features=2, bias=True)
        >>> undo_edits(done)
        >>> layer
        Linear(in_features=4, out_features=2, bias=True)
    """
    done: list[Undo] = []
    try:
        for edit in edits:
            undo = edit.undo()
            edit.apply()
            done.append(undo)
    except BaseException:
        undo_edits(done)
        raise
    return done


def undo_edits(done: Sequence[Undo]) -> None:
    """Revert :func:`apply_edits` bit for bit."""
    for undo in reversed(done):
        undo()


def _restoring(edit: Edit, before: nn.Parameter, dim: int, *, kept: Tensor, lost: Tensor) -> Undo:
    """Return an undo that holds only the entries that an edit of a parameter loses.

    The former parameter is released at once: cutting BERT-base takes 3 MB beyond the model. Keeping all former
    parameters until the proof would take the attention weights once more, 113 MB, a quarter of the model.

    Positions are those in the former parameter: of the entries of the new one, and of those that it lacks or changes.
    """
    owner, attribute, size, device = edit.owner, edit.attribute, before.shape[dim], before.device
    kept, lost = kept.to(device), lost.to(device)
    entries = before.detach().index_select(dim, lost)
    # A parameter in use elsewhere, as by an optimizer, comes back itself.
    former, with_gradient = weakref.ref(before), before if before.grad is not None else None

    def undo() -> None:
        parameter = former() if with_gradient is None else with_gradient
        if parameter is None:
            current = getattr(owner, attribute)
            shape = [size if d == dim else length for d, length in enumerate(current.shape)]
            whole = current.detach().new_empty(shape).index_copy_(dim, kept, current.detach())
            parameter = nn.Parameter(whole.index_copy_(dim, lost, entries), requires_grad=current.requires_grad)
        setattr(owner, attribute, parameter)

    return undo


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
