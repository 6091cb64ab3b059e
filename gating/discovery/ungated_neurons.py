"""Feed-forward modules of a model whose neurons get no gates, with the reasons."""

import re
from collections.abc import Iterator, Sequence
from itertools import combinations

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from gating.discovery.refusals_neurons import why_mixed
from gating.discovery.ungated import UngatedModules, smallest_attention
from gating.structure.blocks import base_prefix, iter_attention_blocks
from gating.structure.edits import num_inputs, num_outputs, without_adapter
from gating.structure.feed_forward import ExpertsBlock, FeedForwardBlock

__all__ = ["find_ungated_neurons"]

_NAMED_SO = re.compile(r"MLP|Mlp|FeedForward|FFN|Ffn|Expert")


def find_ungated_neurons(
    model: nn.Module,
    blocks: Sequence[FeedForwardBlock],
    refused: Sequence[tuple[FeedForwardBlock, str]],
    *,
    searched: bool,
) -> list[UngatedModules]:
    """Return the modules that look like feed-forward, by class name or structure, and are no block that can have gates.

    Args:
        model: The model.
        blocks: The blocks that can have gates.
        refused: The known blocks that can have none, with the reasons.
        searched: Whether discovery has searched the flow of data of the model.
    """
    found: dict[tuple[str, str], list[str]] = {}
    for block, reason in refused:
        found.setdefault((type(block.module).__name__, reason), []).append(block.name)
    prefix = base_prefix(model)
    for name, module, linears in _unknown(model, [*blocks, *(block for block, _ in refused)]):
        reason = _why_ungated(module, linears, searched=searched)
        found.setdefault((type(module).__name__, reason), []).append(name.removeprefix(prefix))
    return [
        UngatedModules(class_name, tuple(names), reason, unit="neurons")
        for (class_name, reason), names in found.items()
    ]


def _unknown(model: nn.Module, blocks: Sequence[FeedForwardBlock]) -> Iterator[tuple[str, nn.Module, list[nn.Module]]]:
    """Yield the modules that look like feed-forward and have no block, with their own linear layers outside of blocks.

    Modules of attention, recurrence and adapters are none: what they map to another width is no neuron.
    """
    others: set[nn.Module] = set()
    for attention in iter_attention_blocks(model):
        others.update(attention.output_projection.modules(), attention.module.modules())
    for _, mixer in smallest_attention(model, ()):
        others.update(mixer.modules())
    for block in blocks:
        layers = [block.module] if isinstance(block, ExpertsBlock) else [up for up, _ in block.ups()]
        for layer in (block.output_projection, *layers):
            others.update(layer.modules())
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
    for _, down in _pairs(linears):
        reason = why_mixed(module, num_inputs(down), num_outputs(down))
        if reason is not None:
            return reason
    if not linears:
        return "it keeps the weights of all experts in parameters of an unknown layout"
    if not any(_pairs(linears)):
        return "its layers do not lead from one width to another and back to the first"
    if searched:
        return "the flow of data in one pass shows no neurons in it that are independent of each other"
    return "the names of its layers are not registered; discover=True may find its layout"
