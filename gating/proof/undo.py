"""Edits of a model that can be undone until the removal is proven."""

import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gating.loader.changes import ABSENT, set_attribute
from gating.structure.edits import Edit, TakeEntries

__all__ = ["EntriesEdit", "Undo", "apply_edits", "undo_edits"]

Undo = Callable[[], None]


class EntriesEdit(Edit, ABC):
    """An edit that changes some entries of a parameter along one dimension.

    Attributes:
        dim: The dimension.
    """

    dim: int

    @abstractmethod
    def changed(self) -> Tensor:
        """Return the positions of the changed entries."""


def apply_edits(edits: Iterable[Edit]) -> list[Undo]:
    """Apply edits in place, in order; after an error, the model is as before.

    Returns:
        The functions for :func:`undo_edits`. Dropping them frees the memory of the removed entries.

    Example:
        >>> from gating.structure.edits import Features, plan_cut
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
            undo = _undo_of(edit)
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


def _undo_of(edit: Edit) -> Undo:
    before: Any = getattr(edit.owner, edit.attribute, ABSENT)
    if isinstance(edit, TakeEntries) and not before.is_meta:
        kept = edit.kept.index()
        is_lost = torch.ones(before.shape[edit.dim], dtype=torch.bool).index_fill_(0, kept, False)
        if edit.silent is not None:
            is_lost[kept[edit.silent.index()]] = True
        return _restoring(edit, before, edit.dim, kept=kept, lost=is_lost.nonzero().flatten())
    if isinstance(edit, EntriesEdit):
        everything = torch.arange(before.shape[edit.dim])
        return _restoring(edit, before, edit.dim, kept=everything, lost=edit.changed().cpu())
    return lambda: set_attribute(edit.owner, edit.attribute, before)


def _restoring(edit: Edit, before: nn.Parameter, dim: int, *, kept: Tensor, lost: Tensor) -> Undo:
    """Return an undo that holds only the entries that an edit of a parameter loses.

    The former parameter is released at once: cutting BERT-base takes 3 MB beyond the model. Keeping all former
    parameters until the proof would take the attention weights once more, 113 MB, a quarter of the model.

    Args:
        edit: The edit.
        before: The parameter.
        dim: The dimension of the entries.
        kept: Positions, in the former parameter, of the entries of the new one.
        lost: Positions of the entries that the new parameter lacks or changes.
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
