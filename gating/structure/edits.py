"""Planned changes to a model that can be undone, and the cutting of linear layers by them.

``nn.Linear`` keeps its weight as ``[outputs, inputs]``; GPT-2's ``Conv1D`` as ``[inputs, outputs]``.
"""

import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

__all__ = [
    "ABSENT",
    "Edit",
    "Features",
    "Rewrite",
    "SetAttribute",
    "Undo",
    "apply_edits",
    "num_inputs",
    "num_outputs",
    "plan_cut",
    "undo_edits",
    "weight_dim",
    "without_adapter",
]

Undo = Callable[[], None]
Restore = Callable[[nn.Parameter], nn.Parameter]
Side = Literal["inputs", "outputs"]


class Edit(Protocol):
    """A planned change of a model.

    Removal is a list of edits: everything is checked while the list is made, and nothing changes before it is applied.
    """

    def apply(self) -> Undo:
        """Make the change, and return the function that reverts it."""


class _Absent:
    """The value of an attribute that does not exist."""


ABSENT: Final = _Absent()


@dataclass(frozen=True)
class SetAttribute:
    """The planned assignment ``owner.attribute = value``; with the value :data:`ABSENT`, a deletion."""

    owner: object
    attribute: str
    value: object

    def apply(self) -> Undo:
        """Assign the value."""
        before = getattr(self.owner, self.attribute, ABSENT)
        _set(self.owner, self.attribute, self.value)
        return lambda: _set(self.owner, self.attribute, before)


@dataclass(frozen=True)
class Rewrite:
    """The planned replacement of a parameter by one that is computed from it.

    The former parameter is released at once: cutting BERT-base takes 3 MB beyond the model. Keeping all of them until
    the removal is proven would take the attention weights once more, 113 MB, a quarter of the model.

    Attributes:
        owner: The module with the parameter.
        name: Name of the parameter.
        compute: Computes the new parameter, and a function that restores the former one from it, bit for bit.
    """

    owner: nn.Module
    name: str
    compute: Callable[[nn.Parameter], tuple[nn.Parameter, Restore]]

    def apply(self) -> Undo:
        """Replace the parameter. A parameter in use elsewhere, as by an optimizer, comes back itself on undo."""
        owner, name = self.owner, self.name
        before = getattr(owner, name)
        parameter, restore = self.compute(before)
        setattr(owner, name, parameter)
        former, with_gradient = weakref.ref(before), before if before.grad is not None else None

        def undo() -> None:
            whole = with_gradient if with_gradient is not None else former()
            setattr(owner, name, restore(getattr(owner, name)) if whole is None else whole)

        return undo


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
            done.append(edit.apply())  # noqa: PERF401 - those done so far are needed on an error
    except BaseException:
        undo_edits(done)
        raise
    return done


def undo_edits(done: Sequence[Undo]) -> None:
    """Revert :func:`apply_edits` bit for bit."""
    for undo in reversed(done):
        undo()


def _set(owner: object, attribute: str, value: object) -> None:
    if not isinstance(value, _Absent):
        setattr(owner, attribute, value)
    elif hasattr(owner, attribute):
        delattr(owner, attribute)


@dataclass(frozen=True)
class Features:
    """Inputs or outputs of a layer, in runs of one width, such as those of some heads."""

    runs: Sequence[int]
    width: int

    def __len__(self) -> int:
        return len(self.runs) * self.width

    def index(self) -> Tensor:
        """Return the positions of the features, ``[len(self)]``, on the CPU even where models are built on meta."""
        starts = torch.tensor(self.runs, dtype=torch.long, device="cpu").unsqueeze(1) * self.width
        return (starts + torch.arange(self.width, device="cpu")).flatten()


def plan_cut(linear: nn.Module, kept: Features, *, side: Side, silent: Features | None = None) -> list[Edit]:
    """Plan to keep some inputs or outputs of a linear layer.

    Args:
        linear: The layer.
        kept: The inputs or outputs to keep.
        side: Which of the two.
        silent: Positions among the kept features whose weight becomes zero.
    """
    size_names = ("nx", "nf") if isinstance(linear, Conv1D) else ("in_features", "out_features")
    edits: list[Edit] = [
        plan_take(linear, "weight", kept, dim=weight_dim(linear, side), silent=silent),
        SetAttribute(linear, size_names[side == "outputs"], len(kept)),
    ]
    if side == "outputs" and linear.bias is not None:
        edits.append(plan_take(linear, "bias", kept, dim=0))
    return edits


def plan_take(owner: nn.Module, name: str, kept: Features, *, dim: int, silent: Features | None = None) -> Rewrite:
    """Plan to keep some entries of a parameter along one dimension; the silent ones among them become zero."""
    return Rewrite(owner, name, lambda before: _take(before, kept, dim, silent))


def _take(before: nn.Parameter, kept: Features, dim: int, silent: Features | None) -> tuple[nn.Parameter, Restore]:
    size = before.shape[dim]
    if before.is_meta:
        # Quick, for models that are built to be loaded into: there are no values to take.
        shape = [len(kept) if d == dim else length for d, length in enumerate(before.shape)]
        empty = before.detach().new_empty
        return _parameter(empty(shape), before), lambda parameter: _parameter(empty(before.shape), parameter)
    positions = kept.index()
    index = positions.to(before.device)
    is_lost = torch.ones(size, dtype=torch.bool, device="cpu").index_fill_(0, positions, False)
    taken = before.detach().index_select(dim, index)
    if silent is not None:
        taken.index_fill_(dim, silent.index().to(before.device), 0.0)
        is_lost[positions[silent.index()]] = True
    lost_index = is_lost.nonzero().flatten().to(before.device)
    lost = before.detach().index_select(dim, lost_index)

    def restore(parameter: nn.Parameter) -> nn.Parameter:
        shape = list(lost.shape)
        shape[dim] = size
        whole = lost.new_empty(shape).index_copy_(dim, index, parameter.detach())
        return _parameter(whole.index_copy_(dim, lost_index, lost), parameter)

    return _parameter(taken, before), restore


def _parameter(values: Tensor, like: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(values, requires_grad=like.requires_grad)


def num_inputs(linear: nn.Module) -> int:
    """Return the width of a linear layer's input, read from its weight."""
    return _width(without_adapter(linear), "inputs")


def num_outputs(linear: nn.Module) -> int:
    """Return the width of a linear layer's output, read from its weight."""
    return _width(without_adapter(linear), "outputs")


def without_adapter(linear: nn.Module) -> nn.Module:
    """Return the layer that an adapter, such as LoRA's, wraps; a layer without adapter as it is."""
    inner = getattr(linear, "base_layer", None)
    return without_adapter(inner) if isinstance(inner, nn.Module) else linear


def weight_dim(linear: nn.Module, side: Side) -> int:
    """Return the dimension of a layer's weight that belongs to its inputs or outputs."""
    return int((side == "inputs") != isinstance(linear, Conv1D))


def _width(linear: Any, side: Side) -> int:
    if isinstance(linear.weight, Tensor):
        return int(linear.weight.shape[weight_dim(linear, side)])
    # A quantized layer: the error that it cannot be edited comes later.
    return int(linear.in_features if side == "inputs" else linear.out_features)
