"""The record of an untrusted folder: its tables and keys, and the names and forms that a layout can have."""

import json
import re
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from gating.families.rows import known_forms
from gating.loader.integrity import CHECKSUMS
from gating.loader.layouts import RowLayout, UpLayout
from gating.loader.parts import PARTS
from gating.loader.record import damaged
from gating.structure.layers import LAYERS_KEY

__all__ = ["check_record"]

_KNOWN = {"format", "blocks", "specs", "feed_forward", "feed_forward_specs", LAYERS_KEY, CHECKSUMS}
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
    _check_layers(record.get(LAYERS_KEY, {}))
    _check_specs(record.get("specs", {}), _ATTENTION, "the spec of {} is not that of an attention class")
    _check_specs(
        record.get("feed_forward_specs", {}), _FEED_FORWARD, "the layout of {} is not that of a feed-forward block"
    )


def _check_known(name: str, table: dict[str, object], known: set[str]) -> None:
    unknown = sorted(table.keys() - known)
    if unknown:
        raise damaged(f"{name} has {unknown[0]!r}, which this version does not know")


def _check_specs(specs: Mapping[str, Any], fields: Mapping[str, str], problem: str) -> None:
    """Raise ``ValueError`` for specs with other fields, or values of which the JSON does not match the pattern."""
    for name, spec in specs.items():
        if not isinstance(spec, dict) or not fields.keys() & _NEEDED <= spec.keys() <= fields.keys():
            raise damaged(problem.format(name))
        for key, value in spec.items():
            if not re.fullmatch(fields[key], json.dumps(value)):
                raise damaged(f"{problem.format(name)}: it has {key}={value!r}")


def _check_layers(layers: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` for a table of layers that left with other entries, or numbers that no model has."""
    _check_known("the table of layers", dict(layers), set(_LAYERS))
    for key, table in layers.items():
        for name, value in table.items() if isinstance(table, dict) else [("", None)]:
            numbers = value if isinstance(value, list) else [value]
            is_count = all(type(number) is int and 0 <= number < _MOST_LAYERS for number in numbers)
            if not (re.fullmatch(_BELOW, name) and re.fullmatch(_LAYERS[key], json.dumps(value))):
                raise damaged(f"the table of layers has {key}.{name}={value!r}")
            if not is_count and (key == "kept" or (key == "config" and type(value) is int)):
                raise damaged(f"the table of layers has {key}.{name}={value!r}, more than a model has")


def _one_of(names: Iterable[str]) -> str:
    return f'"({"|".join(map(re.escape, names))})"'


def _list_of(item: str) -> str:
    return rf"\[({item}(, {item})*)?\]"


def _pairs(first: str, second: str) -> str:
    return _list_of(rf'\["{first}", {second}\]')


# Names in a spec: not private, and no way up except to the parent.
_NAME = r"[A-Za-z][A-Za-z0-9]*(_[A-Za-z0-9]+)*_?"
_BELOW = rf"(\d+|{_NAME})(\.(\d+|{_NAME}))*"
_PATH = rf"\^?{_NAME}(\.(\d+|{_NAME}))*"
# A bound on the number of layers.
_MOST_LAYERS = 4096
_NUMBER = r"-?\d{1,9}(\.\d+)?([eE][+-]?\d+)?"
_VALUE = rf'({_NUMBER}|"[\w-]*"|null|true|false)'
# The table of layers that left.
_LAYERS = {
    "kept": _list_of(r"\d{1,4}"),
    "config": rf"{_VALUE}|{_list_of(_VALUE)}",
    **dict.fromkeys(("heads", "neurons"), r"[1-9]\d{0,6}"),
}
_NEEDED = {"projections", "output_projection", "ups", "down"}
# Patterns of the values of fields in JSON.
_ATTENTION = {
    "projections": _pairs(_PATH, _one_of(typing.get_args(RowLayout))),
    "output_projection": f'"{_PATH}"',
    "other_outputs": _list_of(f'"{_PATH}"'),
    "head_dim": rf'"{_NAME}"|[1-9]\d{{0,6}}',
    "key_dim": f'"{_NAME}"',
    "forward": _one_of(name.removeprefix("forward ") for name in PARTS if name.startswith("forward ")),
    "returns": _one_of(known_forms()),
    "borrowed": '"(v|kv)?"',
    **dict.fromkeys(("is_cross_attention", "has_state", "lends", "calls_projection"), "true|false"),
    "head_counts": _list_of(f'"{_PATH}"'),
    **dict.fromkeys(("head_widths", "key_widths", "config_counts"), _list_of(f'"{_NAME}"')),
    **dict.fromkeys(("per_head", "per_key_value_head", "per_head_inputs"), _pairs(_PATH, "[0-7]")),
}
_FEED_FORWARD = {
    # There is at least one.
    "ups": rf"(?!\[\]){_pairs(_BELOW, _one_of(typing.get_args(UpLayout)))}",
    "down": f'"{_BELOW}"',
    "is_transposed": "true|false",
}
