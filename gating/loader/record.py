"""The record of kept heads and neurons in a model's ``config.json``.

Under the key ``head_gating``: a format number; for each attention block its layout, its former number of heads and the
original numbers of the kept ones; where neurons were removed, for each feed-forward block its layout, its former width,
the number of neurons in a group and the original numbers of the kept groups; and the layouts::

    {"format": 1,
     "specs": {"BertSelfAttention": {"projections": [["query", "q"], ...], "output_projection": "^output.dense", ...}},
     "blocks": {"encoder.layer.0.attention.self": {"spec": "BertSelfAttention", "num_heads": 12, "kept_heads": [0, 7]}},
     "feed_forward_specs": {"BertLayer": {"ups": [["intermediate.dense", "plain"]], "down": "output.dense"}},
     "feed_forward": {"encoder.layer.0.output.dense": {"spec": "BertLayer", "width": 3072, "group": 64, "kept": [2]}}}

``padding_heads`` of a block are heads that only fill groups of query heads, or that do nothing in a block without any
kept head, for runtimes that need one in every layer. For ``sha256``, see ``integrity.py``. The rest of the
configuration stays that of the original architecture, because sizes such as the rotary width are derived from it. If
whole layers left, it describes a model of the others; ``layers``, which nothing here reads, has what the original had.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from .changes import Change, num_inputs
from .heads import AttentionModule, plan_heads
from .integrity import CHECKSUMS, RECORD_KEY, InputError
from .layouts import AttentionSpec, FeedForwardSpec
from .parts import PARTS

__all__ = ["FORMAT", "base_prefix", "damaged", "plan_from_record", "record_of_part", "recorded_names"]

FORMAT = 1


def plan_from_record(model: nn.Module, record: object) -> list[Change]:
    """Check a record against a model that has all its heads and neurons, and plan the removal that it describes.

    The modules of the model get the specs of the record; nothing else changes. By the planned changes, weights keep
    their first rows and columns, until a checkpoint brings their values.

    Raises:
        ValueError: The record is malformed or does not fit the model.
    """
    known = _read_record(record)
    modules = dict(model.named_modules())
    changes: list[Change] = []
    for kind, specs, plan in (("blocks", "specs", _plan_heads), ("feed_forward", "feed_forward_specs", _plan_neurons)):
        entries = known.get(kind, {})
        layouts = {name: _read_spec(name, fields) for name, fields in known.get(specs, {}).items()}
        places = recorded_names(model, entries)
        if entries and not places:
            raise damaged(f"{type(model).__name__} has none of its blocks, such as {min(entries)!r}")
        for name, full_name in places.items():
            entry = entries[name]
            if not isinstance(entry, dict) or entry.get("spec") not in layouts:
                raise damaged(f"block {name!r} has no layout among its {specs}")
            try:
                changes += plan(modules, full_name, name, entry, layouts[entry["spec"]])
            except InputError:
                raise
            except (AttributeError, ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
                reason = f"the layout of block {name!r} does not fit {type(model).__name__}"
                raise damaged(f"{reason} ({error})") from None
    return changes


def recorded_names(model: nn.Module, names: Collection[str]) -> dict[str, str]:
    """Return the full names of the blocks that a model has: a part of it, such as an encoder alone, lacks some."""
    known = {name for name, _ in model.named_modules()}
    prefix = base_prefix(model)
    places = {name: next((full for full in (prefix + name, name) if full in known), None) for name in names}
    return {name: full for name, full in places.items() if full is not None}


def base_prefix(model: nn.Module) -> str:
    """Return the prefix that names of blocks lack, so that a record fits every task head."""
    prefix = getattr(model, "base_model_prefix", "")
    return f"{prefix}." if prefix and hasattr(model, prefix) else ""


def _plan_heads(
    modules: Mapping[str, nn.Module], full_name: str, name: str, entry: dict[str, Any], spec: AttentionSpec
) -> Iterator[Change]:
    module = modules[full_name]
    module.attention_spec = spec  # type: ignore[assignment]
    parent = modules[full_name.rpartition(".")[0]]
    head_dim, num_heads = int(spec.width_of_head(module) or 0), entry.get("num_heads")
    slots = range(num_heads if type(num_heads) is int else 0)
    block = AttentionModule(name, module, parent, spec, head_dim, entry.get("num_key_value_heads", len(slots)), slots)
    present = num_inputs(block.output_projection) // head_dim
    if not slots or num_heads != present:
        raise damaged(f"block {name!r} has num_heads={num_heads}, but the model has {present} heads")
    if not 0 < block.num_key_value_heads <= num_heads:
        raise damaged(f"block {name!r} has num_key_value_heads={block.num_key_value_heads}")
    kept = _read_numbers(name, entry, "kept_heads", "heads", num_heads)
    padding = _read_numbers(name, {"padding_heads": [], **entry}, "padding_heads", "heads", num_heads)
    if set(kept) & set(padding):
        raise damaged(f"block {name!r} names heads {padding} as padding, which must be other than the kept heads")
    if len(kept) < num_heads:
        yield from plan_heads(block, kept, padding)


def _plan_neurons(
    modules: Mapping[str, nn.Module], full_name: str, name: str, entry: dict[str, Any], spec: FeedForwardSpec
) -> Iterator[Change]:
    owner = modules[spec.owner_of(full_name)]
    owner.feed_forward_spec = spec  # type: ignore[assignment]
    width, size, before = entry.get("width"), entry.get("group"), spec.num_neurons(owner)
    if type(width) is not int or width != before:
        raise damaged(f"block {name!r} has width={width}, but the model has {before} neurons")
    if type(size) is not int or not 0 < size <= max(width, 1_000_000):
        raise damaged(f"block {name!r} has no group size")
    kept = _read_numbers(name, entry, "kept", "groups", -(-width // size))
    num_neurons = sum(min(size, width - group * size) for group in kept)
    if num_neurons < width:
        is_replaced = not num_neurons and isinstance(modules[full_name], Conv1D)
        changes = list(PARTS["without_neurons"](spec, owner) if is_replaced else spec.plan(owner, num_neurons))
        down = next((value for *_, value in reversed(changes) if isinstance(value, nn.Module)), modules[full_name])
        yield from changes
        memory = {"kept_groups": tuple(kept), "group_size": size, "width_before": width}
        yield from ((down, key, value) for key, value in memory.items())


def record_of_part(record: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """Return a record without checksums and with only the blocks of a model that may be a part of the saved one."""
    part = {name: value for name, value in record.items() if name != CHECKSUMS}
    for kind in part.keys() & {"blocks", "feed_forward"}:
        part[kind] = {name: part[kind][name] for name in recorded_names(model, part[kind])}
    return part


def damaged(reason: str) -> InputError:
    """Return the error about a record that cannot be used."""
    return InputError(
        f"The record of kept heads and neurons ({RECORD_KEY!r} in config.json) cannot be used: {reason}. Export again."
    )


def _read_record(record: object) -> dict[str, Any]:
    if not isinstance(record, dict) or not isinstance(record.get("blocks"), dict):
        raise damaged("it is not a table of blocks")
    if type(record.get("format")) is not int or record["format"] != FORMAT:
        raise damaged(f"its format is {record.get('format')!r}, and this version reads format {FORMAT}")
    return record


def _read_spec(name: str, fields: object) -> Any:
    """Return a layout; parts of the loader have the replacements of ``forward`` and the layout of experts."""
    try:
        known = {key: _tuples(value) for key, value in dict(fields).items()}  # type: ignore[call-overload]
        if "forward" in known:
            known["forward"] = PARTS[f"forward {known['forward']}"]
        spec_class: Any = FeedForwardSpec if "ups" in known else AttentionSpec
        return (PARTS["experts"] if "is_transposed" in known else spec_class)(**known)
    except (KeyError, TypeError, ValueError):
        raise damaged(f"the layout {name!r} has other fields than one has, or needs code that is not here") from None


def _read_numbers(name: str, entry: dict[str, Any], key: str, units: str, most: int) -> list[int]:
    """Return a list of numbers of heads or groups of neurons below ``most``, in ascending order."""
    numbers = entry.get(key)
    if not isinstance(numbers, list) or not all(type(number) is int for number in numbers):
        raise damaged(f"block {name!r} has no list of {key.removesuffix('_heads')} {units}")
    if sorted(set(numbers)) != numbers or any(not 0 <= number < most for number in numbers):
        raise damaged(f"block {name!r} has {units} 0 to {most - 1}, but {key} is {numbers}")
    return numbers


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
