"""Modules of a model that get no gates, with the reasons; those of attention are found here."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, Literal

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from gating.discovery.refusals import why_not_attention
from gating.errors import InputError, RemedyError, RemedyWarning
from gating.structure.blocks import AttentionBlock, base_prefix, tower_of

__all__ = [
    "UngatedModules",
    "check_patterns",
    "check_towers",
    "explain_none",
    "find_ungated",
    "is_left_out",
    "smallest_attention",
    "ungated_warning",
    "without_left_out",
]

# Names of projections in modules whose class has another name.
_PROJECTIONS = (
    {"q_proj", "k_proj", "v_proj"},
    {"query", "key", "value"},
    {"to_q", "to_k", "to_v"},
    {"q", "k", "v"},
    {"in_proj_qkv", "out_proj"},
)
_MOST_SHOWN = 4
_UNREGISTERED = "its class is not registered; discover=True may find its layout"


@dataclass(frozen=True)
class UngatedModules:
    """Attention or feed-forward modules of one class that get no gates.

    Attributes:
        class_name: Name of their class.
        names: Their names, relative to the model without its task head.
        reason: Why their heads or neurons have no gates.
        unit: What they keep all of.
    """

    class_name: str
    names: tuple[str, ...]
    reason: str
    unit: Literal["heads", "neurons"] = "heads"

    def __str__(self) -> str:
        """Return one clause of a sentence."""
        more = f" and {len(self.names) - 1} more" if len(self.names) > 1 else ""
        return f"{self.names[0]}{more} ({self.class_name}): {self.reason}"


def find_ungated(
    model: nn.Module,
    blocks: Sequence[AttentionBlock],
    *,
    refused: Mapping[str, str],
    problems: Mapping[type, str],
    searched: bool,
) -> list[UngatedModules]:
    """Return the modules that look like attention, by class name or structure, and are no block that can have gates.

    Args:
        model: The model.
        blocks: The blocks that can have gates.
        refused: The reasons for which known blocks can have none, by name.
        problems: What a trial of discovery found wrong with the layout of a class.
        searched: Whether discovery has searched the structure of the model.
    """
    found: dict[tuple[str, str], list[str]] = {}
    prefix = base_prefix(model)
    gated = {block.module for block in blocks}
    for full_name, module in smallest_attention(model, gated):
        name = full_name.removeprefix(prefix)
        reason = refused.get(name) or problems.get(type(module)) or _why_ungated(module, searched=searched)
        found.setdefault((type(module).__name__, reason), []).append(name)
    return [UngatedModules(class_name, tuple(names), reason) for (class_name, reason), names in found.items()]


def ungated_warning(model: nn.Module, ungated: Sequence[UngatedModules]) -> RemedyWarning:
    """Return the warning about modules without gates."""
    sentences = [
        _sentence(model, [one for one in ungated if one.unit == unit])
        for unit in ("heads", "neurons")
        if any(one.unit == unit for one in ungated)
    ]
    name, others = ungated[0].names[0], "or patterns with *, or the towers to gate in"
    return RemedyWarning(
        f"{' '.join(sentences)} If that is meant, name them ",
        python=f"in exclude, such as exclude=[{name!r}] {others} towers.",
        command=f"in gates.exclude, such as gates.exclude=['{name}'] {others} gates.towers.",
    )


def _sentence(model: nn.Module, ungated: Sequence[UngatedModules]) -> str:
    number, unit = sum(len(one.names) for one in ungated), ungated[0].unit
    kind = "attention" if unit == "heads" else "feed-forward"
    shown = "; ".join(str(one) for one in ungated[:_MOST_SHOWN])
    more = f"; and {len(ungated) - _MOST_SHOWN} more classes" if len(ungated) > _MOST_SHOWN else ""
    return f"{number} {kind} modules of {type(model).__name__} get no gates, so they keep all {unit}: {shown}{more}."


def explain_none(model: nn.Module, ungated: Sequence[UngatedModules], *, searched: bool) -> InputError:
    """Return the error for a model without any attention block that can have gates.

    Args:
        model: The model.
        ungated: Its modules that look like attention.
        searched: Whether discovery has searched its structure, too.
    """
    known = [one for one in ungated if one.reason != _UNREGISTERED]
    # In a model with layers of several kinds, discovery may find attention in some.
    if known and (searched or len(known) == len(ungated)):
        return InputError(f"Heads cannot be removed from {type(model).__name__}: in {known[0]}.")
    by_name = {type(m).__name__ for m in model.modules() if re.search("attention", type(m).__name__, re.I)}
    seen = sorted({one.class_name for one in ungated} or by_name)
    problem = (
        f"No attention block of {type(model).__name__} is known: its attention classes are "
        f"{', '.join(seen) or 'none by name'}. Describe one with gating.register_attention_spec("
        f"{(seen or ['MyAttention'])[0]!r}, gating.AttentionSpec(projections=..., output_projection=...))"
    )
    if searched:
        return InputError(f"{problem}; nothing in its structure looks like attention.")
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


def smallest_attention(model: nn.Module, gated: Collection[nn.Module]) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules that look like attention, without those around or inside of others or of gated blocks."""
    inside = {part for module in gated for part in module.modules()}
    candidates = {
        name: module
        for name, module in model.named_modules()
        if name and module not in inside and _looks_like_attention(module)
    }
    all_of_them = {*gated, *candidates.values()}
    for name, module in candidates.items():
        if not (set(module.modules()) - {module}) & all_of_them:
            yield name, module


def _looks_like_attention(module: nn.Module) -> bool:
    if isinstance(module, PreTrainedModel):
        return False  # The names of models match, too.
    if isinstance(module, nn.MultiheadAttention):
        return True
    children = {name for name, child in module.named_children() if isinstance(child, (nn.Linear, Conv1D))}
    if any(names <= children for names in _PROJECTIONS):
        return True
    if why_not_attention(module) is not None:
        return True
    named_so = re.search(r"attention|attn|retention|timemix", type(module).__name__, re.I)
    return named_so is not None and any(isinstance(part, (nn.Linear, Conv1D, nn.Conv2d)) for part in module.modules())


def _why_ungated(module: nn.Module, *, searched: bool) -> str:
    reason = why_not_attention(module)
    if reason is not None:
        return reason
    if searched:
        return "discovery knows no projections of queries, keys and values, or no width of heads, by their names"
    return _UNREGISTERED
