"""The heads that an objective or a removal keeps."""

from gating import find_attention_blocks

__all__ = ["has_padding", "num_kept"]


def has_padding(model):
    """Return whether a model has padding heads."""
    return any(block.head_slots != block.head_ids for block in find_attention_blocks(model))


def num_kept(gates, objective):
    """Return the number of heads that the objective's kept gates stand for."""
    kept = objective.kept(gates).tolist()
    return sum(heads for heads, is_kept in zip(gates.counts["heads"], kept, strict=True) if is_kept)
