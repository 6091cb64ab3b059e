"""The record of kept heads and neurons in a model's ``config.json``.

Under the key ``head_gating``: a format number and, for each attention block, its former number of heads and the
original numbers of the kept ones::

    {"format": 1, "blocks": {"encoder.layer.0.attention.self": {"num_heads": 12, "kept_heads": [0, 7]}, ...}}

``padding_heads`` of a block are heads that only fill groups of query heads, or that do nothing in a block without any
kept head, for runtimes that need one in every layer. ``specs`` has the layouts of attention classes that the shipped
registry lacks. For ``sha256``, see ``integrity.py``.

Where neurons were removed, the format is 2, and ``feed_forward`` has the former width of each block, the number of
neurons in a group, and the original numbers of the kept groups::

    "feed_forward": {"encoder.layer.0.output.dense": {"width": 3072, "group": 64, "kept": [0, 2, 5]}, ...}

``feed_forward_specs`` has the layouts that the shipped registry lacks, by block: a discovered layout may belong to a
class such as ``nn.Sequential``.

The rest of the configuration stays that of the original architecture, because sizes such as the rotary width are
derived from its head counts.
"""

from typing import Any

from torch import nn

from .attention_spec import AttentionSpec
from .blocks import base_prefix, iter_attention_blocks
from .edits import Edit
from .errors import InputError
from .feed_forward import FeedForwardBlock, iter_feed_forward_blocks
from .feed_forward_specs import FeedForwardSpec, fits
from .removal import plan_removal

__all__ = [
    "CHECKSUMS",
    "FORMAT_OF_HEADS",
    "FORMAT_OF_NEURONS",
    "PLAIN_LOADING",
    "RECORD_KEY",
    "REMEDY_OF_PLAIN_LOADING",
    "damaged",
    "lacks_units",
    "plan_from_record",
    "record_of_part",
]

RECORD_KEY = "head_gating"
CHECKSUMS = "sha256"
# By this setting, transformers loads weights from another file, and raises an error that ends with its value if that is
# no name of one. Classes with fewer heads ignore it; a plain class would say that sizes may be ignored.
PLAIN_LOADING = "transformers_weights"
REMEDY_OF_PLAIN_LOADING = (
    "none, because this model has lost heads or neurons, of which its plain class does not know. Load it with an Auto "
    "class or a pipeline and trust_remote_code=True, or with gating.load_compact"
)
FORMAT_OF_HEADS, FORMAT_OF_NEURONS = 1, 2

_KNOWN = {
    FORMAT_OF_HEADS: {"format", "blocks", "specs", CHECKSUMS},
    FORMAT_OF_NEURONS: {"format", "blocks", "specs", "feed_forward", "feed_forward_specs", CHECKSUMS},
}
_KNOWN_OF_BLOCK = {"num_heads", "kept_heads", "padding_heads"}
_KNOWN_OF_FEED_FORWARD = {"width", "group", "kept"}


def plan_from_record(model: nn.Module, record: object) -> list[Edit]:
    """Check a record against a model that has all its heads and neurons, and plan the removal that it describes.

    Args:
        model: A new model of the original architecture. Its modules get the specs of the record, if it has any; nothing
            else changes.
        record: The entry ``head_gating`` of ``config.json``.

    Returns:
        Edits to apply in order.

    Raises:
        ValueError: The record is malformed or does not fit the model.
    """
    known = _read_record(record)
    _set_attention_specs(model, known.get("specs", {}))
    _set_feed_forward_specs(model, known.get("feed_forward_specs", {}))
    edits = _plan_heads(model, known["blocks"], may_be_empty="feed_forward" in known)
    return [*edits, *_plan_neurons(model, known.get("feed_forward", {}))]


def _set_attention_specs(model: nn.Module, specs: object) -> None:
    if not isinstance(specs, dict):
        raise damaged("specs is not a table of classes")
    for module in model.modules():
        if type(module).__name__ in specs:
            module.attention_spec = _read_spec(AttentionSpec, type(module).__name__, specs[type(module).__name__])


def _set_feed_forward_specs(model: nn.Module, specs: object) -> None:
    if not isinstance(specs, dict):
        raise damaged("feed_forward_specs is not a table of blocks")
    modules = dict(model.named_modules())
    for name, fields in specs.items():
        spec = _read_spec(FeedForwardSpec, name, fields)
        full_name = next((full for full in (f"{base_prefix(model)}{name}", name) if full in modules), None)
        if full_name is None:  # A part of the saved model lacks some blocks.
            continue
        owner = modules.get(full_name.removesuffix(spec.down).removesuffix("."))
        if owner is None or not fits(owner, spec):
            raise damaged(f"the layout of block {name!r} does not fit {type(model).__name__}")
        owner.feed_forward_spec = spec


def _read_spec(spec_class: type, name: str, fields: object) -> Any:
    try:
        return spec_class(**_tuples(fields))
    except TypeError:
        raise damaged(f"the layout of {name!r} has other fields than one has") from None


def _plan_heads(model: nn.Module, entries: dict[str, object], *, may_be_empty: bool) -> list[Edit]:
    if not entries and may_be_empty:
        return []
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
        if set(kept) & set(padding):
            raise damaged(f"block {name!r} names heads {padding} as padding, which must be other than the kept heads")
        try:
            edits += plan_removal(block, kept, padding=padding)
        except ValueError as error:
            raise damaged(str(error).rstrip(".")) from None
    return edits


def _plan_neurons(model: nn.Module, entries: object) -> list[Edit]:
    if not isinstance(entries, dict):
        raise damaged("feed_forward is not a table of blocks")
    edits: list[Edit] = []
    # A block without an entry keeps all its neurons.
    for block in iter_feed_forward_blocks(model):
        if block.name in entries:
            block, kept = _read_feed_forward(block, entries[block.name])
            edits += block.plan_removal(kept)
    return edits


def _read_feed_forward(block: FeedForwardBlock, entry: object) -> tuple[FeedForwardBlock, list[int]]:
    """Return a block in groups of the recorded size, and the groups to keep."""
    if not isinstance(entry, dict):
        raise damaged(f"the entry of block {block.name!r} is not a table")
    _check_known(f"block {block.name!r}", entry, _KNOWN_OF_FEED_FORWARD)
    width, size, kept = (entry.get(key) for key in ("width", "group", "kept"))
    if type(width) is not int or width != block.width_before:
        raise damaged(f"block {block.name!r} has width={width}, but the model has {block.width_before} neurons")
    if type(size) is not int or not 0 < size <= max(width, 1_000_000):
        raise damaged(f"block {block.name!r} has no group size")
    block = block.regrouped(size)
    if not isinstance(kept, list) or not all(type(group) is int for group in kept):
        raise damaged(f"block {block.name!r} has no list of kept groups")
    if sorted(set(kept)) != kept or any(not 0 <= group < block.num_groups_before for group in kept):
        raise damaged(f"block {block.name!r} has groups 0 to {block.num_groups_before - 1}, but kept is {kept}")
    return block, kept


def record_of_part(record: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """Return a record without checksums and with only the blocks of a model that may be a part of the saved one."""
    part = {name: value for name, value in record.items() if name != CHECKSUMS}
    if part["blocks"]:
        part["blocks"] = {block.name: part["blocks"][block.name] for block in iter_attention_blocks(model)}
    if "feed_forward" in part:
        names = {block.name for block in iter_feed_forward_blocks(model)}
        part["feed_forward"] = {name: entry for name, entry in part["feed_forward"].items() if name in names}
    return part


def lacks_units(record: dict[str, Any]) -> bool:
    """Return whether a record that was just written has fewer heads or neurons than the original model."""
    return any(len(entry["kept_heads"]) < entry["num_heads"] for entry in record["blocks"].values()) or any(
        len(entry["kept"]) * entry["group"] < entry["width"] for entry in record.get("feed_forward", {}).values()
    )


def damaged(reason: str) -> InputError:
    """Return the error about a record that cannot be used."""
    return InputError(
        f"The record of kept heads and neurons ({RECORD_KEY!r} in config.json) cannot be used: {reason}. Export again."
    )


def _read_record(record: object) -> dict[str, Any]:
    if not isinstance(record, dict) or not isinstance(record.get("blocks"), dict):
        raise damaged("it is not a table of blocks")
    version = record.get("format")
    if type(version) is not int or version not in _KNOWN:
        raise damaged(f"its format is {version!r}, and this version reads formats 1 and 2")
    _check_known("it", record, _KNOWN[version])
    return record


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
