"""The record of kept heads that a model's ``config.json`` carries.

Under the key ``head_gating``: a format number and, for each attention block, how many heads it had and which of
them (by their original numbers) are kept::

    {"format": 1, "blocks": {"encoder.layer.0.attention.self": {"num_heads": 12, "kept_heads": [0, 7]}, ...}}

``padding_heads``, where there are any, are heads that do nothing but fill a group of query heads up. ``specs`` holds
the layout of attention classes that are not in the shipped registry, so that loading needs no help. ``sha256`` is
about the files of a folder, see ``files.py``.

The rest of the configuration stays that of the original architecture: sizes such as the rotary width are derived
from its head counts.
"""

import re
import typing
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

from torch import nn

from .blocks import AttentionBlock, iter_attention_blocks
from .edits import Edit
from .errors import InputError
from .families import AttentionSpec, Returns, RowLayout, find_spec
from .removal import plan_removal
from .subclasses import original_class

__all__ = ["CHECKSUMS", "FORMAT", "RECORD_KEY", "describe_kept_heads", "plan_from_record"]

RECORD_KEY = "head_gating"
CHECKSUMS = "sha256"
FORMAT = 1

_KNOWN = {"format", "blocks", "specs", CHECKSUMS}
_KNOWN_OF_BLOCK = {"num_heads", "kept_heads", "padding_heads"}
# Names that a spec may give: no private ones, and no way up but the one to the parent.
_NAME = r"[A-Za-z][A-Za-z0-9]*(_[A-Za-z0-9]+)*_?"
_PATH = rf"\^?{_NAME}(\.(\d+|{_NAME}))*"


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
        Edits for :func:`~gating.structure.edits.apply_edits`.

    Raises:
        ValueError: The record is malformed or does not fit the model; the message names the block.
    """
    entries, specs = _read_record(record)
    for module in model.modules():
        if type(module).__name__ in specs:
            module.attention_spec = specs[type(module).__name__]  # type: ignore[assignment]
    blocks = {block.name: block for block in iter_attention_blocks(model)}
    if not blocks:
        raise _damaged(f"no attention block of {type(model).__name__} is known")
    # A base model (say, an encoder alone) may lack blocks of the model that was saved, never the other way round.
    missing = [name for name in blocks if name not in entries]
    if missing:
        raise _damaged(f"it does not mention the attention block {missing[0]!r} of {type(model).__name__}")
    edits: list[Edit] = []
    for name, block in blocks.items():
        entry = entries[name]
        if isinstance(entry, dict) and (entry.get("num_heads"), type(entry.get("num_heads"))) != (block.num_heads, int):
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
    _check_known("it", record, _KNOWN)
    specs = record.get("specs", {})
    if not isinstance(specs, dict):
        raise _damaged("specs is not a table of attention classes")
    return dict(record["blocks"]), {name: _read_spec(name, spec) for name, spec in specs.items()}


def _check_known(what: str, table: dict[str, object], known: set[str]) -> None:
    unknown = sorted(table.keys() - known)
    if unknown:
        raise _damaged(f"{what} has {unknown[0]!r}, which this version does not know")


def _read_heads(name: str, entry: object, key: str, num_heads: int) -> list[int]:
    heads = entry.get(key, None if key == "kept_heads" else []) if isinstance(entry, dict) else None
    if isinstance(entry, dict):
        _check_known(f"block {name!r}", entry, _KNOWN_OF_BLOCK)
    if not isinstance(heads, list) or not all(type(head) is int for head in heads):
        raise _damaged(f"block {name!r} has no list of {key.replace('_', ' ')}")
    if sorted(set(heads)) != heads or any(not 0 <= head < num_heads for head in heads):
        raise _damaged(f"block {name!r} has heads 0 to {num_heads - 1}, but {key} is {heads}")
    return heads


def _write_spec(spec: AttentionSpec) -> dict[str, Any]:
    """Describe a spec by what differs from the defaults, as it comes back from JSON."""
    return {
        field.name: _lists(getattr(spec, field.name))
        for field in fields(spec)
        if getattr(spec, field.name) != field.default and field.name in _FIELDS
    }


def _read_spec(name: str, written: object) -> AttentionSpec:
    if not isinstance(written, dict) or not {"projections", "output_projection"} <= set(written) <= set(_FIELDS):
        raise _damaged(f"the spec of {name} is not that of an attention class")
    for key, value in written.items():
        if not _FIELDS[key](value):
            raise _damaged(f"the spec of {name} has {key}={value!r}")
    return AttentionSpec(**{key: _tuples(value) for key, value in written.items()})


def _is_text(value: object, pattern: str) -> bool:
    return isinstance(value, str) and re.fullmatch(pattern, value) is not None


def _are_names(value: object) -> bool:
    return isinstance(value, list) and all(_is_text(name, _NAME) for name in value)


def _are_pairs(value: object, is_second: Callable[[object], bool]) -> bool:
    return isinstance(value, list) and all(
        isinstance(pair, list) and len(pair) == 2 and _is_text(pair[0], _PATH) and is_second(pair[1]) for pair in value
    )


def _are_dims(value: object) -> bool:
    return _are_pairs(value, lambda dim: type(dim) is int and 0 <= dim < 8)


# What the fields of a spec must look like in a record; a forward of its own cannot be written down.
_FIELDS: dict[str, Callable[[object], bool]] = {
    "projections": lambda value: _are_pairs(value, lambda layout: layout in typing.get_args(RowLayout)),
    "output_projection": lambda value: _is_text(value, _PATH),
    "head_dim": lambda value: _is_text(value, _NAME),
    "returns": lambda value: value in typing.get_args(Returns),
    "is_cross_attention": lambda value: isinstance(value, bool),
    **dict.fromkeys(("head_counts", "head_widths", "config_counts"), _are_names),
    **dict.fromkeys(("per_head", "per_key_value_head", "per_head_inputs"), _are_dims),
}


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _lists(value: Any) -> Any:
    return list(map(_lists, value)) if isinstance(value, tuple) else value


def _damaged(why: str) -> ValueError:
    return InputError(f"The record of kept heads ({RECORD_KEY!r} in config.json) cannot be used: {why}. Export again.")
