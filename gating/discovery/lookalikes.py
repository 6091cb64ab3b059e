"""Modules of a model that look like attention or feed-forward, and have no known block, with the reasons."""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import combinations

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from gating.discovery.dependence import why_mixed, why_not_attention
from gating.families.linear import num_inputs, num_outputs, without_adapter
from gating.structure.attention import AttentionBlock, iter_attention_blocks
from gating.structure.feed_forward import FeedForwardBlock

__all__ = ["UNREGISTERED", "attention_lookalikes", "feed_forward_lookalikes", "parts_of_blocks", "why_no_neurons"]

UNREGISTERED = "its class is not registered; discover=True may find its layout"
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
    model: nn.Module, known: Sequence[AttentionBlock], *, problems: Mapping[type, str], searched: bool
) -> Iterator[tuple[str, nn.Module, str]]:
    """Yield the modules that look like attention and have no known block, with names and reasons.

    The ``problems`` are those that discovery found with the layouts of some classes, if it has ``searched`` the model.
    """
    for name, module in _smallest_attention(model, {block.module for block in known}):
        reason = problems.get(type(module)) or why_not_attention(module)
        unknown = "discovery knows no projections of queries, keys and values, or no width of heads, by their names"
        yield name, module, reason or (unknown if searched else UNREGISTERED)


def feed_forward_lookalikes(
    model: nn.Module, known: Sequence[FeedForwardBlock], *, searched: bool
) -> Iterator[tuple[str, nn.Module, str]]:
    """Yield the modules that look like feed-forward and have no known block, with names and reasons."""
    for name, module, linears in _unknown(model, known):
        yield name, module, _why_ungated(module, linears, searched=searched)


def _smallest_attention(model: nn.Module, gated: Collection[nn.Module]) -> Iterator[tuple[str, nn.Module]]:
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


def _unknown(model: nn.Module, blocks: Sequence[FeedForwardBlock]) -> Iterator[tuple[str, nn.Module, list[nn.Module]]]:
    """Yield the modules that look like feed-forward and have no block, with their own linear layers outside of blocks.

    Modules of attention, recurrence and adapters are none: what they map to another width is no neuron.
    """
    others = parts_of_blocks(model, blocks)
    for _, mixer in _smallest_attention(model, ()):
        others.update(mixer.modules())
    for module in model.modules():
        others |= set(module.modules()) - {module} if without_adapter(module) is not module else set()
    for name, module in model.named_modules():
        if module in others or isinstance(module, PreTrainedModel):
            continue
        linears = [
            child
            for child in module.children()
            if child not in others and isinstance(without_adapter(child), (nn.Linear, Conv1D))
        ]
        if _looks_like_feed_forward(module, linears):
            yield name, module, linears


def parts_of_blocks(model: nn.Module, blocks: Iterable[FeedForwardBlock]) -> set[nn.Module]:
    """Return the modules of all attention blocks of a model, and of the layers of some feed-forward blocks."""
    attention = [layer for block in iter_attention_blocks(model) for layer in (block.module, block.output_projection)]
    layers = [*attention, *(layer for block in blocks for layer in block.layers())]
    return {part for layer in layers for part in layer.modules()}


def _looks_like_feed_forward(module: nn.Module, linears: Sequence[nn.Module]) -> bool:
    """Return whether a class is named so and has layers, or maps to a larger width and back."""
    num_weights = sum(parameter.dim() == 3 for parameter in module.parameters(recurse=False))
    is_named_so = _NAMED_SO.search(type(module).__name__) is not None
    return (is_named_so and len(linears) + num_weights > 1) or any(
        num_inputs(down) > num_outputs(down) for _, down in _pairs(linears)
    )


def _pairs(linears: Sequence[nn.Module]) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Yield the pairs of layers, in their order, of which the first maps to a width, once or twice, and one back."""
    for up, down in combinations(linears, 2):
        width = num_inputs(down)
        if num_inputs(up) == num_outputs(down) and num_outputs(up) in (width, 2 * width):
            yield up, down


def _why_ungated(module: nn.Module, linears: Sequence[nn.Module], *, searched: bool) -> str:
    if reason := _why_mixed_between(module, linears):
        return reason
    if not linears:
        return "it keeps the weights of all experts in parameters of an unknown layout"
    if not any(_pairs(linears)):
        return "its layers do not lead from one width to another and back to the first"
    if searched:
        return "the flow of data in one pass shows no neurons in it that are independent of each other"
    return "the names of its layers are not registered; discover=True may find its layout"


def _why_mixed_between(module: nn.Module, linears: Sequence[nn.Module]) -> str | None:
    """Return the reason for which neurons between two layers of a module are mixed, or None."""
    reasons = (why_mixed(module, num_inputs(down), num_outputs(down)) for _, down in _pairs(linears))
    return next(filter(None, reasons), None)


def why_no_neurons(model: nn.Module) -> str | None:
    """Return the reason for which no feed-forward block of a model has independent neurons, or None.

    The reason is found in the structure of the model, not in a list of families.
    """
    attention = {module for block in iter_attention_blocks(model) for module in block.module.modules()}
    for name, module in model.named_modules():
        linears = [child for child in module.children() if isinstance(child, (nn.Linear, Conv1D))]
        reason = _why_mixed_between(module, linears) if module not in attention else None
        if reason is not None:
            return f"in {name or 'the model'} ({type(module).__name__}), {reason}"
    for name, module in model.named_modules():
        has_experts = "expert" in f"{name} {type(module).__name__}".lower()
        if has_experts and any(parameter.dim() == 3 for parameter in module.parameters(recurse=False)):
            return f"{name} ({type(module).__name__}) keeps the weights of all experts in one unknown parameter"
    return None
