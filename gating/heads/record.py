"""The record of kept heads that a model's ``config.json`` carries.

Under the key ``head_gating``: a format number and, for each attention block, how many heads it had and which of
them (by their original numbers) are kept::

    {"format": 1, "blocks": {"encoder.layer.0.attention.self": {"num_heads": 12, "kept_heads": [0, 7]}, ...}}

``padding_heads``, where there are any, are heads that do nothing but fill a group of query heads up. ``specs`` holds
the layout of attention classes that are not in the shipped registry, so that loading needs no help.

The rest of the configuration stays that of the original architecture: sizes such as the rotary width are derived
from its head counts.
"""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from torch import nn

from .blocks import AttentionBlock, find_attention_blocks
from .edits import Edit
from .families import find_spec
from .removal import plan_removal
from .spec import AttentionSpec
from .subclasses import original_class

__all__ = ["FORMAT", "RECORD_KEY", "describe_kept_heads", "plan_from_record"]

RECORD_KEY = "head_gating"
FORMAT = 1


def describe_kept_heads(blocks: Sequence[AttentionBlock]) -> dict[str, Any]:
    """Return the record of the heads that blocks have now."""
    record: dict[str, Any] = {"format": FORMAT, "blocks": {block.name: _describe(block) for block in blocks}}
    specs = {
        original_class(type(block.module)).__name__: _write_spec(block.spec)
        for block in blocks
        if block.spec != find_spec(block.module, shipped_only=True)
    }
    return {**record, "specs": specs} if specs else record


def plan_from_record(model: nn.Module, record: object) -> list[Edit]:
    """Check a record against a model that has all its heads, and plan the removal that it describes.

    Args:
        model: A freshly built model of the original architecture. Its attention modules get the specs of the record,
            if that has any; nothing else changes.
        record: What ``config.json`` holds under ``head_gating``.

    Returns:
        Edits for :func:`~gating.heads.edits.apply_edits`.

    Raises:
        ValueError: The record is malformed or does not fit the model; the message names the block.
    """
    entries, specs = _read_record(record)
    for module in model.modules():
        if type(module).__name__ in specs:
            module.attention_spec = specs[type(module).__name__]  # type: ignore[assignment]
    blocks = {block.name: block for block in find_attention_blocks(model)}
    # A base model (say, an encoder alone) may lack blocks of the model that was saved, never the other way round.
    missing = [name for name in blocks if name not in entries]
    if missing:
        raise _damaged(f"it does not mention the attention block {missing[0]!r} of {type(model).__name__}")
    edits: list[Edit] = []
    for name, block in blocks.items():
        entry = entries[name]
        if isinstance(entry, dict) and entry.get("num_heads") != block.num_heads:
            raise _damaged(
                f"block {name!r} has num_heads={entry.get('num_heads')}, but the model has {block.num_heads} heads"
            )
        kept = _read_heads(name, entry, "kept_heads", block.num_heads)
        padding = _read_heads(name, entry, "padding_heads", block.num_heads)
        if set(kept) & set(padding) or (padding and not kept):
            raise _damaged(f"block {name!r} names heads {padding} as padding, which must fill groups of kept heads")
        try:
            edits += plan_removal(block, kept, padding=padding)
        except ValueError as error:
            raise _damaged(str(error).rstrip(".")) from None
    return edits


def _describe(block: AttentionBlock) -> dict[str, Any]:
    entry = {"num_heads": block.num_heads_before, "kept_heads": list(block.head_ids)}
    padding = [head for head in block.head_slots if head not in block.head_ids]
    return {**entry, "padding_heads": padding} if padding else entry


def _read_record(record: object) -> tuple[dict[str, object], dict[str, AttentionSpec]]:
    if not isinstance(record, dict) or not isinstance(record.get("blocks"), dict):
        raise _damaged("it is not a table of blocks")
    if record.get("format") != FORMAT:
        raise _damaged(f"its format is {record.get('format')!r}, and this version reads format {FORMAT}")
    specs = record.get("specs", {})
    if not isinstance(specs, dict):
        raise _damaged("specs is not a table of attention classes")
    return dict(record["blocks"]), {name: _read_spec(name, spec) for name, spec in specs.items()}


def _read_heads(name: str, entry: object, key: str, num_heads: int) -> list[int]:
    heads = entry.get(key, None if key == "kept_heads" else []) if isinstance(entry, dict) else None
    if not isinstance(heads, list) or not all(type(head) is int for head in heads):
        raise _damaged(f"block {name!r} has no list of {key.replace('_', ' ')}")
    if sorted(set(heads)) != heads or any(not 0 <= head < num_heads for head in heads):
        raise _damaged(f"block {name!r} has heads 0 to {num_heads - 1}, but {key} is {heads}")
    return heads


def _write_spec(spec: AttentionSpec) -> dict[str, Any]:
    """Describe a spec by what differs from the defaults; a ``forward`` of its own cannot be written down."""
    return {
        field.name: getattr(spec, field.name)
        for field in fields(spec)
        if getattr(spec, field.name) != field.default and field.name != "forward"
    }


def _read_spec(name: str, written: object) -> AttentionSpec:
    known = {field.name for field in fields(AttentionSpec)} - {"forward"}
    if not isinstance(written, dict) or not {"projections", "output_projection"} <= set(written) <= known:
        raise _damaged(f"the spec of {name} is not that of an attention class")
    return AttentionSpec(**{key: _tuples(value) for key, value in written.items()})


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _damaged(why: str) -> ValueError:
    return ValueError(f"The record of kept heads ({RECORD_KEY!r} in config.json) cannot be used: {why}. Export again.")
