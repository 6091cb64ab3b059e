"""Planned changes to a model, which can be taken back."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

__all__ = ["ABSENT", "Edit", "apply_edits", "undo_edits"]


class _Absent:
    """The value of an attribute that is not there; an edit that makes it deletes the attribute."""


ABSENT: Final = _Absent()


@dataclass(frozen=True)
class Edit:
    """One planned change, ``setattr(owner, attribute, make())``.

    Removal is a list of edits: everything is checked while the list is made, and nothing changes before it is
    applied. The new value is made late, so that only one projection exists twice at a time.
    """

    owner: object
    attribute: str
    make: Callable[[], object]


def apply_edits(edits: Iterable[Edit]) -> list[tuple[object, str, object]]:
    """Apply edits in place, in order.

    Returns:
        What was there before, for :func:`undo_edits`. Dropping it frees the memory of what was removed.
    """
    done: list[tuple[object, str, object]] = []
    try:
        for edit in edits:
            before = getattr(edit.owner, edit.attribute, ABSENT)
            value = edit.make()
            done.append((edit.owner, edit.attribute, before))
            _set(edit.owner, edit.attribute, value)
    except BaseException:
        undo_edits(done)
        raise
    return done


def undo_edits(done: Sequence[tuple[object, str, object]]) -> None:
    """Put everything back as it was before :func:`apply_edits`, bit for bit."""
    for owner, attribute, before in reversed(done):
        _set(owner, attribute, before)


def _set(owner: object, attribute: str, value: object) -> None:
    if not isinstance(value, _Absent):
        setattr(owner, attribute, value)
    elif hasattr(owner, attribute):
        delattr(owner, attribute)
