"""Padding heads, which fill groups of query heads up, and stay silent in further training."""

from torch import nn

from gating.discovery.find import find_attention_blocks
from gating.pruning.columns import silence_inputs
from gating.structure.edits import Features

__all__ = ["has_padding", "silence_padding"]


def has_padding(model: nn.Module) -> bool:
    """Say whether some removed heads of a model fill up groups of query heads."""
    return any(block.head_slots != block.head_ids for block in find_attention_blocks(model))


def silence_padding(model: nn.Module) -> None:
    """Set the output projection's columns of padding heads to zero again, in place.

    Training leaves them at zero, since their inputs are zero (see :func:`~gating.structure.subclasses.silenced`);
    this is for columns that something else has written to, such as a merged adapter.
    """
    for block in find_attention_blocks(model):
        if block.head_slots == block.head_ids:
            continue
        padding = [slot for slot, head in enumerate(block.head_slots) if head not in block.head_ids]
        silence_inputs(block.output_projection, Features(padding, block.head_dim))
