"""Modules of a model that look like attention or feed-forward, and have no known block."""

import re
from collections.abc import Collection, Iterator, Mapping
from itertools import combinations

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from gating.discovery.refusals import why_mixed, why_not_attention
from gating.families.feed_forward import find_feed_forward_spec
from gating.families.layouts import FeedForwardSpec
from gating.families.linear import num_inputs, num_outputs, without_adapter
from gating.structure.attention import iter_attention_blocks
from gating.structure.feed_forward import iter_feed_forward_blocks

__all__ = [
    "UNREGISTERED",
    "Lookalike",
    "attention_lookalikes",
    "feed_forward_lookalikes",
    "unknown_feed_forward",
]

# The name of a module, the module, and the reason why it has no block.
Lookalike = tuple[str, nn.Module, str]

UNREGISTERED = "its layers are not registered; discover=True may find their layout"
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


def attention_lookalikes(
    model: nn.Module, known: Collection[nn.Module], *, problems: Mapping[nn.Module, str] | None
) -> Iterator[Lookalike]:
    """Yield the modules that look like attention, without those around or inside of others or of known ones.

    Args:
        model: The model.
        known: The modules that have a block.
        problems: Why discovery has not accepted what it found in some modules; None if it has not searched.
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
    """Yield the modules whose class is named so and has layers, or that map to a larger width and back.

    The arguments are those of :func:`attention_lookalikes`.
    """
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
    """Yield the feed-forward blocks that linear layers could be by their widths, the likeliest first.

    Example:
        >>> layers = {"gate": nn.Linear(4, 8), "up": nn.Linear(4, 8), "down": nn.Linear(8, 4)}
        >>> next(_guess_feed_forward(layers)).ups
        (('gate', 'plain'), ('up', 'plain'))
    """
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
