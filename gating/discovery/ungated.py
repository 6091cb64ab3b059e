"""Modules of a model that get no gates, with the reasons, and the names by which a user leaves them out."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from gating.discovery.lookalikes import UNREGISTERED, Lookalike
from gating.errors import InputError, RemedyError, RemedyWarning
from gating.loader.modeling import base_prefix
from gating.structure.blocks import Block, tower_of
from gating.units import UNITS, UnitName

__all__ = [
    "UngatedModules",
    "check_patterns",
    "check_towers",
    "explain_none",
    "group_ungated",
    "is_left_out",
    "ungated_warning",
    "without_left_out",
]

_MOST_SHOWN = 4


@dataclass(frozen=True)
class UngatedModules:
    """Modules of one class that look like blocks with units and get no gates.

    Attributes:
        class_name: Name of their class.
        names: Their names, relative to the model without its task head.
        reason: Why their units have no gates.
        unit: Name of the units that they keep all of.
    """

    class_name: str
    names: tuple[str, ...]
    reason: str
    unit: UnitName = "heads"

    def __str__(self) -> str:
        """Return one clause of a sentence."""
        more = f" and {len(self.names) - 1} more" if len(self.names) > 1 else ""
        return f"{self.names[0]}{more} ({self.class_name}): {self.reason}"


def group_ungated(
    model: nn.Module, refused: Sequence[tuple[Block, str]], lookalikes: Iterable[Lookalike], *, unit: UnitName
) -> list[UngatedModules]:
    """Return the modules without gates, those of one class with one reason together.

    They are those of the refused blocks, with the reasons, and the ``lookalikes``.
    """
    found: dict[tuple[str, str], list[str]] = {}
    for block, reason in refused:
        found.setdefault((type(block.module).__name__, reason), []).append(block.name)
    prefix = base_prefix(model)
    for name, module, reason in lookalikes:
        found.setdefault((type(module).__name__, reason), []).append(name.removeprefix(prefix))
    return [UngatedModules(class_name, tuple(names), reason, unit) for (class_name, reason), names in found.items()]


def ungated_warning(model: nn.Module, ungated: Sequence[UngatedModules]) -> RemedyWarning:
    """Return the warning about modules without gates."""
    sentences = [
        _sentence(model, [one for one in ungated if one.unit == unit])
        for unit in dict.fromkeys(one.unit for one in ungated)
    ]
    name, others = ungated[0].names[0], "or patterns with *, or the towers to gate in"
    return RemedyWarning(
        f"{' '.join(sentences)} If that is meant, name them ",
        python=f"in exclude, such as exclude=[{name!r}] {others} towers.",
        command=f"in gates.exclude, such as gates.exclude=['{name}'] {others} gates.towers.",
    )


def _sentence(model: nn.Module, ungated: Sequence[UngatedModules]) -> str:
    number, unit = sum(len(one.names) for one in ungated), ungated[0].unit
    shown = "; ".join(str(one) for one in ungated[:_MOST_SHOWN])
    more = f"; and {len(ungated) - _MOST_SHOWN} more classes" if len(ungated) > _MOST_SHOWN else ""
    modules = f"{number} {UNITS[unit].label} modules of {type(model).__name__}"
    return f"{modules} get no gates, so they keep all {unit}: {shown}{more}."


def explain_none(model: nn.Module, ungated: Sequence[UngatedModules], *, unit: UnitName, searched: bool) -> InputError:
    """Return the error for a model without any block that can have gates, in which discovery may have searched."""
    known = [one for one in ungated if one.reason != UNREGISTERED]
    # In a model with layers of several kinds, discovery may find blocks in some.
    if known and (searched or len(known) == len(ungated)):
        return InputError(f"{unit.capitalize()} cannot be removed from {type(model).__name__}: in {known[0]}.")
    classes = ", ".join(sorted({one.class_name for one in ungated})) or "none that looks like one"
    register = "attention" if unit == "heads" else "feed_forward"
    problem = (
        f"No {UNITS[unit].label} block of {type(model).__name__} is known ({classes}). Describe its class with "
        f"gating.register_{register}_spec"
    )
    if searched:
        return InputError(f"{problem}; nothing in its structure looks like one that discovery knows.")
    end = "to discover its structure."
    return RemedyError(problem, python=f", or pass discover=True {end}", command=f", or give gates.discover=true {end}")


def check_patterns(exclude: Any) -> None:
    """Raise ``InputError`` for names or patterns to leave out that are no list of texts."""
    if isinstance(exclude, str) or not isinstance(exclude, Collection) or any(type(one) is not str for one in exclude):
        example = exclude if isinstance(exclude, str) else "visual.*"
        raise InputError(f"exclude={exclude!r} cannot be used: give a list of names, such as [{example!r}].")


def is_left_out(name: str, *, exclude: Collection[str], towers: Collection[str] | None) -> bool:
    """Return whether a user has named a module, its tower or a pattern for it as one without gates.

    Example:
        >>> is_left_out("visual.blocks.0.attn", exclude=["visual.*"], towers=None)
        True
    """
    in_tower = towers is None or tower_of(name) in towers
    return not in_tower or any(fnmatchcase(name, pattern) for pattern in exclude)


def without_left_out(
    ungated: Sequence[UngatedModules], *, exclude: Collection[str], towers: Collection[str] | None
) -> list[UngatedModules]:
    """Return the modules without gates that a user has not left out."""
    named = [
        replace(one, names=tuple(name for name in one.names if not is_left_out(name, exclude=exclude, towers=towers)))
        for one in ungated
    ]
    return [one for one in named if one.names]


def check_towers(names: Collection[str], towers: Any) -> tuple[str, ...] | None:
    """Return the towers to gate; raise ``InputError`` for one that a model with blocks of these names lacks."""
    if towers is None:
        return None
    if not isinstance(towers, Collection):
        raise InputError(f"towers={towers!r} cannot be used: give a name, such as 'vision', or a list of names.")
    wanted = (towers,) if isinstance(towers, str) else tuple(towers)
    known = list(dict.fromkeys(map(tower_of, names)))
    unknown = [tower for tower in wanted if tower not in known]
    if unknown or not wanted:
        problem = f"has no tower {unknown[0]!r}" if unknown else "gets no gates with towers=[]"
        raise InputError(f"The model {problem}. There are {', '.join(known)}.")
    return wanted
