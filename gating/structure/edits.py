"""Planned changes to a model, which can be taken back."""

import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from torch import nn

__all__ = ["ABSENT", "Edit", "Rewritten", "Undo", "apply_edits", "undo_edits"]

Undo = Callable[[], None]


class _Absent:
    """The value of an attribute that is not there; an edit that makes it deletes the attribute."""


ABSENT: Final = _Absent()


@dataclass(frozen=True)
class Rewritten:
    """A parameter made of the one before, and the way back.

    Attributes:
        parameter: The new parameter.
        restore: Makes the former parameter of the new one, bit for bit.
    """

    parameter: nn.Parameter
    restore: Callable[[nn.Parameter], nn.Parameter]


@dataclass(frozen=True)
class Edit:
    """One planned change, ``setattr(owner, attribute, make())``.

    Removal is a list of edits: everything is checked while the list is made, and nothing changes before it is
    applied. The new value is made late, so that only one projection exists twice at a time. Where ``make`` gives a
    :class:`Rewritten` parameter, the former one is let go of: what is kept to take the change back is what was cut off.
    """

    owner: object
    attribute: str
    make: Callable[[], object]

    def apply(self) -> Undo:
        """Change the owner and return what takes the change back."""
        before = getattr(self.owner, self.attribute, ABSENT)
        value = self.make()
        if isinstance(value, Rewritten):
            _set(self.owner, self.attribute, value.parameter)
            return _way_back(self.owner, self.attribute, before, value.restore)
        _set(self.owner, self.attribute, value)
        return lambda: _set(self.owner, self.attribute, before)


def apply_edits(edits: Iterable[Edit]) -> list[Undo]:
    """Apply edits in place, in order.

    Returns:
        The ways back, for :func:`undo_edits`. Dropping them frees the memory of what was removed.
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
    """Put everything back as it was before :func:`apply_edits`, bit for bit."""
    for undo in reversed(done):
        undo()


def _way_back(owner: object, attribute: str, before: Any, restore: Callable[[nn.Parameter], nn.Parameter]) -> Undo:
    # An optimizer may hold the former parameter; then it is there anyway and comes back itself.
    former = weakref.ref(before)
    held = before if before.grad is not None else None

    def undo() -> None:
        parameter = held if held is not None else former()
        _set(owner, attribute, restore(getattr(owner, attribute)) if parameter is None else parameter)

    return undo


def _set(owner: object, attribute: str, value: object) -> None:
    if not isinstance(value, _Absent):
        setattr(owner, attribute, value)
    elif hasattr(owner, attribute):
        delattr(owner, attribute)
