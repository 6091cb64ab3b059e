"""Edits of a removal: attributes that change, entries of parameters that stay, and how both are undone.

Also tensors that are cut over processes.
"""

import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from gating.families.layouts import Side, parameter_names, size_names, weight_dim
from gating.loader.modeling import subclass
from gating.loader.parts import narrow_conv1d

Undo = Callable[[], None]
# The value of an attribute that does not exist.
ABSENT: Final = object()


def positions(runs: Sequence[int], width: int = 1) -> Tensor:
    """Return the positions in runs of one width, as those of heads, ``[len(runs) * width]``, on the CPU, not meta."""
    starts = torch.tensor(runs, dtype=torch.long, device="cpu").unsqueeze(1) * width
    return (starts + torch.arange(width, device="cpu")).flatten()


@dataclass(frozen=True)
class Edit:
    """A planned change of one attribute. All checks of a removal come before the first of its edits is applied.

    The value :data:`ABSENT` deletes it. Of a parameter, the entries ``kept`` along ``dim`` stay, in place of a value;
    each has a factor, ``[len(kept)]``, or 1.
    """

    owner: Any
    attribute: str
    value: Any = ABSENT
    kept: Tensor | None = None
    dim: int = 0
    factors: Tensor | None = None

    def apply(self) -> Undo:
        """Change the attribute, and return the function that brings its former value back."""
        before = getattr(self.owner, self.attribute, ABSENT)
        if self.kept is not None:
            return self._take(before, self.kept)
        self._set(self.value)
        return partial(self._set, before)

    def _set(self, value: object) -> None:
        if value is not ABSENT:
            setattr(self.owner, self.attribute, value)
        elif hasattr(self.owner, self.attribute):
            delattr(self.owner, self.attribute)

    def _take(self, before: Any, kept: Tensor) -> Undo:
        """Replace a parameter by its entries at some positions, multiplied by their factors."""
        device = before.device
        values = before.detach().index_select(self.dim, kept.to(device))
        lost = torch.ones(before.shape[self.dim], dtype=torch.bool, device="cpu").index_fill_(0, kept, False)
        if self.factors is not None:
            changed = (self.factors != 1).nonzero().flatten().cpu()
            lost[kept[changed]] = True
            shape = [-1 if dim == self.dim else 1 for dim in range(before.dim())]
            factors, changed = self.factors.to(before)[changed.to(device)].reshape(shape), changed.to(device)
            # Zero for whatever there was, NaN among it.
            scaled = (values.index_select(self.dim, changed) * factors).masked_fill_(factors == 0, 0.0)
            values.index_copy_(self.dim, changed, scaled)
        undo = self._restoring(before, kept.to(device), lost.nonzero().flatten().to(device))
        setattr(self.owner, self.attribute, nn.Parameter(values, requires_grad=before.requires_grad))
        return undo

    def _restoring(self, before: nn.Parameter, kept: Tensor, lost: Tensor) -> Undo:
        """Return an undo that holds only the entries that are lost, at positions in the former parameter."""
        # Keeping former parameters until the proof would take the attention weights of BERT-base once more, 113 MB.
        size, entries = before.shape[self.dim], before.detach().index_select(self.dim, lost)
        # A parameter in use elsewhere, as by an optimizer, comes back itself.
        former, with_gradient = weakref.ref(before), before if before.grad is not None else None

        def undo() -> None:
            parameter = former() if with_gradient is None else with_gradient
            if parameter is None:
                current = getattr(self.owner, self.attribute)
                shape = [size if dim == self.dim else length for dim, length in enumerate(current.shape)]
                values = current.detach().new_empty(shape).index_copy_(self.dim, kept, current.detach())
                values.index_copy_(self.dim, lost, entries)
                parameter = nn.Parameter(values, requires_grad=current.requires_grad)
            setattr(self.owner, self.attribute, parameter)

        return undo


def plan_cut(linear: nn.Module, kept: Tensor, *, side: Side, silent: Tensor | None = None) -> list[Edit]:
    """Plan to keep some inputs or outputs of a linear layer; the weight of the silent ones of those becomes zero."""
    weight, bias = parameter_names(linear)
    factors = None if silent is None else torch.ones(len(kept), device="cpu").index_fill_(0, silent, 0.0)
    edits = [
        Edit(linear, weight, kept=kept, dim=weight_dim(linear, side), factors=factors),
        *(Edit(linear, name, len(kept)) for name in size_names(linear, side)),
    ]
    if not len(kept) and isinstance(linear, Conv1D):
        edits.append(Edit(linear, "__class__", subclass(type(linear), (narrow_conv1d,))))
    if side == "outputs" and getattr(linear, bias) is not None:
        edits.append(Edit(linear, bias, kept=kept))
    return edits


def plan_entries(owner: nn.Module, name: str, kept: Sequence[int], *, dim: int, num_before: int) -> Edit:
    """Plan to keep the entries of some of several heads in a parameter, or their modules in a list."""
    value = getattr(owner, name)
    if isinstance(value, nn.ModuleList):
        return Edit(owner, name, nn.ModuleList([value[head] for head in kept]))
    return Edit(owner, name, kept=positions(kept, value.shape[dim] // num_before), dim=dim)


def apply_edits(edits: Iterable[Edit]) -> list[Undo]:
    """Apply edits in place, or none after an error, and return the functions for :func:`undo_edits`."""
    done: list[Undo] = []
    try:
        for edit in edits:
            undo = edit.apply()
            done.append(undo)
    except BaseException:
        undo_edits(done)
        raise
    return done


def undo_edits(done: Sequence[Undo]) -> None:
    """Revert :func:`apply_edits` bit for bit."""
    for undo in reversed(done):
        undo()


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor that FSDP2 has cut over several processes as a plain one; a plain tensor as it is."""
    gather = getattr(tensor, "full_tensor", None)
    return tensor if gather is None else gather()


def own_part(tensor: Tensor) -> Tensor:
    """Return the part of a tensor that this process has, if FSDP2 has cut it; a plain tensor as it is."""
    part = getattr(tensor, "to_local", None)
    return tensor if part is None else part()


def fill(parameter: Tensor, values: Tensor) -> None:
    """Give a parameter the values of a plain tensor, in place; one that FSDP2 has cut gets its part in each process."""
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
