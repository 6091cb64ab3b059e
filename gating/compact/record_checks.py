"""The record of an untrusted folder: its tables and keys, and the names and forms that a layout can have."""

import re
import typing
from collections.abc import Callable
from typing import Any, cast

from gating.families.rows import known_forms
from gating.loader.integrity import CHECKSUMS
from gating.loader.layouts import RowLayout, UpLayout
from gating.loader.parts import PARTS
from gating.loader.record import damaged

__all__ = ["check_record"]

# Names in a spec: not private, and no way up except to the parent.
_NAME = r"[A-Za-z][A-Za-z0-9]*(_[A-Za-z0-9]+)*_?"
_DOTTED = rf"{_NAME}(\.(\d+|{_NAME}))*"
_PATH = rf"\^?{_DOTTED}"
_MOST = 2**20
_BELOW = rf"(\d+|{_NAME})(\.(\d+|{_NAME}))*"


_KNOWN = {"format", "blocks", "specs", "feed_forward", "feed_forward_specs", CHECKSUMS}
_KNOWN_OF_ENTRIES = {
    "blocks": {"spec", "num_heads", "num_key_value_heads", "kept_heads", "padding_heads"},
    "feed_forward": {"spec", "width", "group", "kept"},
}


def check_record(record: object) -> None:
    """Raise ``ValueError`` for a record with unknown keys, or a layout that names anything but modules and parameters.

    Numbers are checked with the model, when it is built.
    """
    if not isinstance(record, dict):
        return
    _check_known("it", record, _KNOWN)
    for key in record.keys() - {"format"}:
        if not isinstance(record[key], dict):
            raise damaged(f"{key} is not a table of blocks")
    for kind, known in _KNOWN_OF_ENTRIES.items():
        for name, entry in record.get(kind, {}).items():
            if not isinstance(entry, dict):
                raise damaged(f"the entry of block {name!r} is not a table")
            _check_known(f"block {name!r}", entry, known)
    _check_specs(record.get("specs", {}))
    _check_layouts(record.get("feed_forward_specs", {}))


def _check_known(name: str, table: dict[str, object], known: set[str]) -> None:
    unknown = sorted(table.keys() - known)
    if unknown:
        raise damaged(f"{name} has {unknown[0]!r}, which this version does not know")


def _check_specs(specs: dict[str, Any]) -> None:
    for name, spec in specs.items():
        if not isinstance(spec, dict) or not {"projections", "output_projection"} <= set(spec) <= set(_FIELDS):
            raise damaged(f"the spec of {name} is not that of an attention class")
        for key, value in spec.items():
            if not _FIELDS[key](value):
                raise damaged(f"the spec of {name} has {key}={value!r}")


def _check_layouts(specs: dict[str, Any]) -> None:
    for name, spec in specs.items():
        fields = set(spec) - {"is_transposed"} if isinstance(spec, dict) else set()
        is_known = fields == {"ups", "down"} and _is_text(spec["down"], _BELOW)
        is_known = is_known and isinstance(spec.get("is_transposed", True), bool)
        if not (is_known and _are_ups(cast(dict[str, object], spec)["ups"])):
            raise damaged(f"the layout of {name} is not that of a feed-forward block")


def _is_text(value: object, pattern: str) -> bool:
    return isinstance(value, str) and re.fullmatch(pattern, value) is not None


def _are_names(value: object) -> bool:
    return isinstance(value, list) and all(_is_text(name, _NAME) for name in value)


def _are_pairs(value: object, is_second: Callable[[object], bool], *, path: str = _PATH) -> bool:
    return isinstance(value, list) and all(
        isinstance(pair, list) and len(pair) == 2 and _is_text(pair[0], path) and is_second(pair[1]) for pair in value
    )


def _are_ups(value: object) -> bool:
    return bool(value) and _are_pairs(value, lambda layout: layout in typing.get_args(UpLayout), path=_BELOW)


def _are_dims(value: object) -> bool:
    return _are_pairs(value, lambda dim: type(dim) is int and 0 <= dim < 8)


# Valid values of the fields in a record.
_FIELDS: dict[str, Callable[[object], bool]] = {
    "projections": lambda value: _are_pairs(value, lambda layout: layout in typing.get_args(RowLayout)),
    "output_projection": lambda value: _is_text(value, _PATH),
    "other_outputs": lambda value: isinstance(value, list) and all(_is_text(path, _PATH) for path in value),
    "head_dim": lambda value: _is_text(value, _NAME) or (type(value) is int and 0 < value <= _MOST),
    "key_dim": lambda value: _is_text(value, _NAME),
    "forward": lambda value: isinstance(value, str) and f"forward {value}" in PARTS,
    "returns": lambda value: isinstance(value, str) and value in known_forms(),
    "borrowed": lambda value: value in ("", "v", "kv"),
    **dict.fromkeys(
        ("is_cross_attention", "has_state", "lends", "calls_projection"), lambda value: isinstance(value, bool)
    ),
    "head_counts": lambda value: isinstance(value, list) and all(_is_text(path, _PATH) for path in value),
    **dict.fromkeys(("head_widths", "key_widths", "config_counts"), _are_names),
    **dict.fromkeys(("per_head", "per_key_value_head", "per_head_inputs"), _are_dims),
}
