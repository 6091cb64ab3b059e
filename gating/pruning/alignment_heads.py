"""Heads that a model's generation settings refer to by number."""

from collections.abc import Collection, Mapping, Sequence

from torch import nn

from gating.structure.blocks import AttentionBlock
from gating.structure.edits import ABSENT, Edit, SetAttribute
from gating.structure.feed_forward import Block
from gating.structure.removal import select

__all__ = ["plan_alignment_heads"]


def plan_alignment_heads(model: nn.Module, blocks: Sequence[Block], kept: Mapping[str, Collection[int]]) -> list[Edit]:
    """Plan the update of Whisper's ``alignment_heads``: pairs (decoder layer, head of its cross-attention).

    Word-level timestamps are computed from the attention of these heads. Kept heads get their new positions. If none is
    kept, the setting is removed, and transformers reports that these timestamps are not available.

    Args:
        model: The model.
        blocks: Its blocks that lose units.
        kept: For each block, by name, the original numbers of the heads to keep.
    """
    config = getattr(model, "generation_config", None)
    pairs = getattr(config, "alignment_heads", None)
    if not pairs:
        return []
    attention = [block for block in blocks if isinstance(block, AttentionBlock)]
    cross_attention = {block.layer_idx: block for block in attention if block.is_cross_attention}
    moved: list[list[int]] = []
    for layer_idx, position in pairs:
        block = cross_attention.get(layer_idx)
        if block is None:
            moved.append([layer_idx, position])
            continue
        head = block.head_slots[position]
        heads = kept[block.name]
        if head in heads:
            moved.append([layer_idx, select(block, heads).head_slots.index(head)])
    return [SetAttribute(config, "alignment_heads", moved or ABSENT)]
