"""The record of kept heads that a model's ``config.json`` carries.

Under the key ``head_gating``: a format number and, for each attention block, how many heads it had and which of
them (by their original numbers) are kept::

    {"format": 1, "blocks": {"encoder.layer.0.attention.self": {"num_heads": 12, "kept_heads": [0, 7]}, ...}}

The rest of the configuration stays that of the original architecture: sizes such as the rotary width are derived
from its head counts.
"""

from collections.abc import Sequence
from typing import Any

from torch import nn

from .blocks import AttentionBlock, find_attention_blocks
from .removal import Edit, plan_removal

__all__ = ["FORMAT", "RECORD_KEY", "describe_kept_heads", "plan_from_record"]

RECORD_KEY = "head_gating"
FORMAT = 1


def describe_kept_heads(blocks: Sequence[AttentionBlock]) -> dict[str, Any]:
    """Return the record of the heads that blocks have now."""
    return {
        "format": FORMAT,
        "blocks": {
            block.name: {"num_heads": block.num_heads_before, "kept_heads": list(block.head_ids)} for block in blocks
        },
    }


def plan_from_record(model: nn.Module, record: object) -> list[Edit]:
    """Check a record against a model that has all its heads, and plan the removal that it describes.

    Args:
        model: A freshly built model of the original architecture.
        record: What ``config.json`` holds under ``head_gating``.

    Returns:
        Edits for :func:`~gating.heads.removal.apply_edits`.

    Raises:
        ValueError: The record is malformed or does not fit the model; the message names the block.
    """
    entries = _read_entries(record)
    blocks = {block.name: block for block in find_attention_blocks(model)}
    # A base model (say, an encoder alone) may lack blocks of the model that was saved, never the other way round.
    missing = [name for name in blocks if name not in entries]
    if missing:
        raise _damaged(f"it does not mention the attention block {missing[0]!r} of {type(model).__name__}")
    edits: list[Edit] = []
    for name, block in blocks.items():
        edits += plan_removal(block, _read_kept(name, entries[name], block.num_heads))
    return edits


def _read_entries(record: object) -> dict[str, object]:
    if not isinstance(record, dict) or not isinstance(record.get("blocks"), dict):
        raise _damaged("it is not a table of blocks")
    if record.get("format") != FORMAT:
        raise _damaged(f"its format is {record.get('format')!r}, and this version reads format {FORMAT}")
    return dict(record["blocks"])


def _read_kept(name: str, entry: object, num_heads: int) -> list[int]:
    kept = entry.get("kept_heads") if isinstance(entry, dict) else None
    if isinstance(entry, dict) and entry.get("num_heads") != num_heads:
        raise _damaged(f"block {name!r} has num_heads={entry.get('num_heads')}, but the model has {num_heads} heads")
    if not isinstance(kept, list) or not all(type(head) is int for head in kept):
        raise _damaged(f"block {name!r} has no list of kept heads")
    if sorted(set(kept)) != kept or any(not 0 <= head < num_heads for head in kept):
        raise _damaged(f"block {name!r} has heads 0 to {num_heads - 1}, but kept_heads is {kept}")
    return kept


def _damaged(why: str) -> ValueError:
    return ValueError(f"The record of kept heads ({RECORD_KEY!r} in config.json) cannot be used: {why}. Export again.")
