"""The record of kept heads in a model's ``config.json``.

Under the key ``head_gating``: a format number and, for each attention block, its former number of heads and the
original numbers of the kept ones::

    {"format": 1, "blocks": {"encoder.layer.0.attention.self": {"num_heads": 12, "kept_heads": [0, 7]}, ...}}

``padding_heads`` of a block are heads that only fill groups of query heads. ``specs`` has the layouts of attention
classes that the shipped registry lacks. For ``sha256``, see ``integrity.py``.

The rest of the configuration stays that of the original architecture, because sizes such as the rotary width are
derived from its head counts.
"""

from typing import Any

from torch import nn

from .blocks import iter_attention_blocks
from .edits import Edit
from .errors import InputError
from .families import AttentionSpec
from .removal import plan_removal

__all__ = ["CHECKSUMS", "FORMAT", "RECORD_KEY", "damaged", "plan_from_record", "record_of_part"]

RECORD_KEY = "head_gating"
CHECKSUMS = "sha256"
FORMAT = 1

_KNOWN = {"format", "blocks", "specs", CHECKSUMS}
_KNOWN_OF_BLOCK = {"num_heads", "kept_heads", "padding_heads"}


def plan_from_record(model: nn.Module, record: object) -> list[Edit]:
    """Check a record against a model that has all its heads, and plan the removal that it describes.

    Args:
        model: A new model of the original architecture. Its attention modules get the specs of the record, if it has
            any; nothing else changes.
        record: The entry ``head_gating`` of ``config.json``.

    Returns:
        Edits to apply in order.

    Raises:
        ValueError: The record is malformed or does not fit the model.
    """
    entries, specs = _read_record(record)
    for module in model.modules():
        if type(module).__name__ in specs:
            module.attention_spec = specs[type(module).__name__]  # type: ignore[assignment]
    blocks = {block.name: block for block in iter_attention_blocks(model)}
    if not blocks:
        raise damaged(f"no attention block of {type(model).__name__} is known")
    # A base model, such as an encoder alone, may lack blocks of the saved model, but not the other way round.
    missing = [name for name in blocks if name not in entries]
    if missing:
        raise damaged(f"it does not mention the attention block {missing[0]!r} of {type(model).__name__}")
    edits: list[Edit] = []
    for name, block in blocks.items():
        entry = entries[name]
        if isinstance(entry, dict) and (entry.get("num_heads"), type(entry.get("num_heads"))) != (block.num_heads, int):
            raise damaged(
                f"block {name!r} has num_heads={entry.get('num_heads')}, but the model has {block.num_heads} heads"
            )
        kept = _read_heads(name, entry, "kept_heads", block.num_heads)
        padding = _read_heads(name, entry, "padding_heads", block.num_heads)
        if set(kept) & set(padding) or (padding and not kept):
            raise damaged(f"block {name!r} names heads {padding} as padding, which must fill groups of kept heads")
        try:
            edits += plan_removal(block, kept, padding=padding)
        except ValueError as error:
            raise damaged(str(error).rstrip(".")) from None
    return edits


def record_of_part(record: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """Return a record without checksums and with only the blocks of a model that may be a part of the saved one."""
    blocks = {block.name: record["blocks"][block.name] for block in iter_attention_blocks(model)}
    return {name: value for name, value in record.items() if name != CHECKSUMS} | {"blocks": blocks}


def damaged(reason: str) -> InputError:
    """Return the error about a record that cannot be used."""
    return InputError(
        f"The record of kept heads ({RECORD_KEY!r} in config.json) cannot be used: {reason}. Export again."
    )


def _read_record(record: object) -> tuple[dict[str, object], dict[str, AttentionSpec]]:
    if not isinstance(record, dict) or not isinstance(record.get("blocks"), dict):
        raise damaged("it is not a table of blocks")
    if record.get("format") != FORMAT:
        raise damaged(f"its format is {record.get('format')!r}, and this version reads format {FORMAT}")
    _check_known("it", record, _KNOWN)
    specs = record.get("specs", {})
    if not isinstance(specs, dict):
        raise damaged("specs is not a table of attention classes")
    return dict(record["blocks"]), {name: AttentionSpec(**_tuples(spec)) for name, spec in specs.items()}


def _check_known(name: str, table: dict[str, object], known: set[str]) -> None:
    unknown = sorted(table.keys() - known)
    if unknown:
        raise damaged(f"{name} has {unknown[0]!r}, which this version does not know")


def _read_heads(name: str, entry: object, key: str, num_heads: int) -> list[int]:
    heads = entry.get(key, None if key == "kept_heads" else []) if isinstance(entry, dict) else None
    if isinstance(entry, dict):
        _check_known(f"block {name!r}", entry, _KNOWN_OF_BLOCK)
    if not isinstance(heads, list) or not all(type(head) is int for head in heads):
        raise damaged(f"block {name!r} has no list of {key.replace('_', ' ')}")
    if sorted(set(heads)) != heads or any(not 0 <= head < num_heads for head in heads):
        raise damaged(f"block {name!r} has heads 0 to {num_heads - 1}, but {key} is {heads}")
    return heads


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _tuples(item) for name, item in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
