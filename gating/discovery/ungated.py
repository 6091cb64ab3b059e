"""Modules of a model that look like attention or feed-forward and get no gates, and the reasons."""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import combinations
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from gating.discovery.refusals import why_mixed, why_not_attention
from gating.errors import InputError
from gating.families.layouts import FeedForwardSpec, num_inputs, num_outputs, without_adapter
from gating.families.registry import find_feed_forward_spec
from gating.loader.modeling import base_prefix
from gating.structure.attention import iter_attention_blocks
from gating.structure.blocks import Block, tower_of
from gating.structure.feed_forward import iter_feed_forward_blocks
from gating.units import UNITS, UnitName

_MOST_SHOWN = 4
# The name of a module, the module, and the reason why it has no block.
Lookalike = tuple[str, nn.Module, str]
UNREGISTERED = "its layers fit no registered layout; discover=True may find theirs"
_NOT_FOUND = "discovery finds no layers in it whose names or widths it knows"
# Names of projections in modules whose class has another name.
_PROJECTIONS = (
    {"q_proj", "k_proj", "v_proj"},
    {"query", "key", "value"},
    {"to_q", "to_k", "to_v"},
    {"q", "k", "v"},
    {"in_proj_qkv", "out_proj"},
)
_NAMED_SO = re.compile(r"MLP|Mlp|FeedForward|FFN|Ffn|Expert")


@dataclass(frozen=True)
class UngatedModules:
    """Modules of one class that look like blocks with a unit, and why they get no gates."""

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
    """Return the modules of refused blocks and lookalikes, those of one class with one reason together."""
    found: dict[tuple[str, str], list[str]] = {}
    for block, reason in refused:
        found.setdefault((type(block.module).__name__, reason), []).append(block.name)
    prefix = base_prefix(model)
    for name, module, reason in lookalikes:
        found.setdefault((type(module).__name__, reason), []).append(name.removeprefix(prefix))
    return [UngatedModules(class_name, tuple(names), reason, unit) for (class_name, reason), names in found.items()]


def ungated_warning(ungated: Sequence[UngatedModules]) -> str:
    """Return the warning about modules without gates."""
    units = " or ".join(dict.fromkeys(one.unit for one in ungated))
    return (
        f"Some modules get no gates, so they keep all {units}: {_clauses(ungated)}. If that is meant, name them in "
        f"exclude, such as exclude=[{ungated[0].names[0]!r}] or patterns with *, or the towers to gate in towers "
        "(settings gates.exclude and gates.towers)."
    )


def _clauses(ungated: Sequence[UngatedModules]) -> str:
    more = [f"and {len(ungated) - _MOST_SHOWN} more classes"] if len(ungated) > _MOST_SHOWN else []
    return "; ".join([*map(str, ungated[:_MOST_SHOWN]), *more])


def explain_none(model: nn.Module, ungated: Sequence[UngatedModules], *, unit: UnitName, searched: bool) -> InputError:
    """Return the error for a model without any block that can lose units, in which discovery may have searched."""
    found = _clauses(ungated) or f"no {UNITS[unit].label} block of it is known"
    problem = f"{unit.capitalize()} cannot be removed from {type(model).__name__}: {found}."
    if ungated and all(one.reason != UNREGISTERED for one in ungated):
        return InputError(problem)
    register = f"gating.register_{'attention' if unit == 'heads' else 'feed_forward'}_spec"
    discover = "" if searched or ungated else ", or discover its structure with discover=True"
    return InputError(f"{problem} Describe its class with {register}{discover}.")


def is_left_out(name: str, *, exclude: Collection[str], towers: Collection[str] | None) -> bool:
    """Return whether a user has named a module, its tower or a pattern for it as one without gates."""
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
    wanted = (towers,) if isinstance(towers, str) else tuple(towers)
    known = list(dict.fromkeys(map(tower_of, names)))
    unknown = [tower for tower in wanted if tower not in known]
    if unknown or not wanted:
        problem = f"has no tower {unknown[0]!r}" if unknown else "gets no gates with towers=[]"
        raise InputError(f"The model {problem}. There are {', '.join(known)}.")
    return wanted


def attention_lookalikes(
    model: nn.Module, known: Collection[nn.Module], *, problems: Mapping[nn.Module, str] | None
) -> Iterator[Lookalike]:
    """Yield the modules that look like attention, without those around or inside of others or of known ones.

    ``problems`` says why discovery has not accepted its finding in some modules; it is None if it has not searched.
    """
    inside = {part for module in known for part in module.modules()}
    candidates = {
        name: module
        for name, module in model.named_modules()
        if name and module not in inside and _looks_like_attention(module)
    }
    all_of_them = {*known, *candidates.values()}
    for name, module in candidates.items():
        if not (set(module.modules()) - {module}) & all_of_them:
            yield name, module, why_not_attention(module) or _why_unknown(module, problems)


def _looks_like_attention(module: nn.Module) -> bool:
    if isinstance(module, PreTrainedModel):
        return False  # The names of models match, too.
    if isinstance(module, nn.MultiheadAttention):
        return True
    children = {name for name, child in module.named_children() if isinstance(child, (nn.Linear, Conv1D))}
    if any(names <= children for names in _PROJECTIONS) or why_not_attention(module) is not None:
        return True
    named_so = re.search(r"attention|attn|retention|timemix", type(module).__name__, re.I)
    return named_so is not None and any(isinstance(part, (nn.Linear, Conv1D, nn.Conv2d)) for part in module.modules())


def feed_forward_lookalikes(model: nn.Module, *, problems: Mapping[nn.Module, str] | None) -> Iterator[Lookalike]:
    """Yield the modules whose class is named so and has layers, or that map to a larger width and back."""
    for name, module, guesses in unknown_feed_forward(model):
        num_weights = sum(map(_is_linear, module.children()))
        num_weights += sum(parameter.dim() == 3 for parameter in module.parameters(recurse=False))
        is_named_so = _NAMED_SO.search(type(module).__name__) is not None
        sizes = [(spec.num_neurons(module), num_outputs(module.get_submodule(spec.down))) for spec in guesses]
        if (is_named_so and num_weights > 1) or any(width > hidden for width, hidden in sizes):
            mixed = (why_mixed(module, width, hidden) for width, hidden in sizes)
            yield name, module, next(filter(None, mixed), None) or _why_unknown(module, problems)


def _why_unknown(module: nn.Module, problems: Mapping[nn.Module, str] | None) -> str:
    return UNREGISTERED if problems is None else problems.get(module, _NOT_FOUND)


def _is_linear(module: nn.Module) -> bool:
    return isinstance(without_adapter(module), (nn.Linear, Conv1D))


def unknown_feed_forward(model: nn.Module) -> list[tuple[str, nn.Module, list[FeedForwardSpec]]]:
    """Return the modules without a block, with the feed-forward blocks that their linear layers could be.

    The layers are children or their children, which no smaller module may use. Modules of attention, recurrence and
    adapters are left out: what they map to another width is no neuron.
    """
    others = {mixer for _, mixer, _ in attention_lookalikes(model, (), problems=None)}
    for block in iter_attention_blocks(model):
        others |= {block.module, block.output_projection}
    others.update(layer for block in iter_feed_forward_blocks(model) for layer in block.layers())
    others = {part for module in others for part in module.modules()}
    for module in model.modules():
        others |= set(module.modules()) - {module} if without_adapter(module) is not module else set()
    found = []
    for name, module in reversed(list(model.named_modules())):
        if module in others or isinstance(module, PreTrainedModel) or find_feed_forward_spec(module):
            continue
        layers = {
            path: child
            for path, child in module.named_modules()
            if path and path.count(".") < 2 and child not in others and _is_linear(child)
        }
        guesses = list(_guess_feed_forward(layers))
        others |= set(layers.values()) if guesses else set()
        found.append((name, module, guesses))
    return found[::-1]


def _guess_feed_forward(layers: Mapping[str, nn.Module]) -> Iterator[FeedForwardSpec]:
    """Yield the feed-forward blocks that linear layers could be by their widths, the likeliest first."""
    plain: dict[str, list[str]] = {}
    fused: dict[str, list[str]] = {}
    for up, down in combinations(layers, 2):
        if num_inputs(layers[up]) == num_outputs(layers[down]):
            width = num_inputs(layers[down])
            ups_of = {width: plain, 2 * width: fused}.get(num_outputs(layers[up]), {})
            ups_of.setdefault(down, []).append(up)
    for down, ups in plain.items():
        # A gate is beside its other half; stacks of equal layers would have guesses without number.
        for guess in dict.fromkeys([tuple(ups[-2:]), (ups[-1],), (ups[-2:][0],)]):
            yield FeedForwardSpec(tuple((up, "plain") for up in guess), down)
    for down, ups in fused.items():
        yield FeedForwardSpec(((ups[-1], "halves"),), down)
        yield FeedForwardSpec(((ups[-1], "pairs"),), down)
