"""Keeping padding heads silent while a compact model is trained on."""

import torch
from torch import nn

from .blocks import find_attention_blocks
from .linear import scale_inputs

__all__ = ["has_padding", "silence_padding"]


def has_padding(model: nn.Module) -> bool:
    """Say whether some removed heads of a model fill up groups of query heads."""
    return any(block.head_slots != block.head_ids for block in find_attention_blocks(model))


def silence_padding(model: nn.Module) -> None:
    """Set the output projection's columns of padding heads to zero again, in place.

    They get gradients like any other weight; without this, heads that were removed would come back to life in further
    training. Call it after each optimizer step of a model that :func:`has_padding`.
    """
    for block in find_attention_blocks(model):
        if block.head_slots == block.head_ids:
            continue
        kept = torch.tensor([float(head in block.head_ids) for head in block.head_slots])
        projection = block.output_projection
        with torch.no_grad():
            projection.weight.copy_(scale_inputs(projection, kept.repeat_interleave(block.head_dim)))  # type: ignore[operator]
