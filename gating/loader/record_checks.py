"""Limits of the record of an untrusted folder: patterns of its values, and its changes of the dense model.

Its tables and names are checked before anything is built, its shapes and attributes against the dense model, which is
built without memory: no tensor grows, no module or attribute is new but the notes of units, and no name is private.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from gating.errors import DamageError, InputError
from gating.loader import forwards, forwards_images, parts  # noqa: F401 - they register what a record may name
from gating.loader.modeling import CANARY, CHECKSUMS, PARTS, RECORD_KEY, places_of
from gating.loader.record import COUNTS, FORMAT, SPEC_NOTES, UNIT_NOTES, is_plain

_NAME = r"[A-Za-z][A-Za-z0-9]*(_[A-Za-z0-9]+)*_?"
_PATH = rf"\^?({_NAME}|\d+)(\.({_NAME}|\d+))*"
_SIZES = r"\[(\d{1,9}(, \d{1,9})*)?\]"
_NUMBER = r"-?\d{1,9}(\.\d+)?([eE][+-]?\d+)?|true|false"
_NUMBERS = rf"{_NUMBER}|\[(({_NUMBER})(, ({_NUMBER}))*)?\]"
# A part in JSON, and its arguments: numbers, truths, names of others and paths, and lists of them.
_PART = rf'\["({"|".join(PARTS)})"([\[\], ]|\b\d{{1,6}}\b|true|false|"{_PATH}")*\]'
_VALUE = rf'({_NUMBER}|"[\w-]*"|null)'
_MODULES = {
    "tensors": _SIZES,
    "added": r"\[\d{1,6}\]",
    "attributes": _NUMBERS,
    "counts": r"\d{1,6}",
    "config": rf'{_NUMBER}|"batched_mm"',
    "without": rf'"({_NAME}|\d+)"',
    "parts": _PART,
}
_UNITS = {
    **dict.fromkeys(UNIT_NOTES, rf"\d{{1,7}}|{_SIZES}"),
    # A layout is read when it is used.
    **dict.fromkeys(SPEC_NOTES, r"\{.*\}"),
}
_LAYERS = {
    "kept": r"\[(\d{1,4}(, \d{1,4})*)?\]",
    # Numbers of layers are bounded: a configuration allocates for each.
    "config": rf"(?!-?\d{{5}}){_VALUE}|\[({_VALUE}(, {_VALUE})*)?\]",
    **dict.fromkeys(("heads", "neurons"), r"[1-9]\d{0,6}"),
}


def check_record(record: object) -> None:
    """Raise ``ValueError`` for a record with unknown keys, or values that no record has."""
    if not isinstance(record, dict):
        raise damaged("it is not a table")
    if type(record.get("format")) is not int or record["format"] != FORMAT:
        raise damaged(
            f"its format is {record.get('format')!r}, and this version reads format {FORMAT}: load it with the version "
            "that saved it"
        )
    _check_known("it", record, {"format", "modules", "units", "layers", CHECKSUMS, CANARY})
    tables = {kind: _table(record.get(kind), kind) for kind in ("modules", "units")}
    tables["layers"] = {"layers": record.get("layers", {})}
    for kind, patterns, names in (("modules", _MODULES, _NAME), ("units", _UNITS, _NAME), ("layers", _LAYERS, _PATH)):
        for name, entry in tables[kind].items():
            _check_known(f"{kind} {name!r}", _table(entry, name), set(patterns))
            for key, value, place in _values(name, entry, is_note=kind == "units"):
                if not re.fullmatch(patterns[place], json.dumps(value)) or not re.fullmatch(names, key):
                    raise damaged(f"{name}.{key} cannot be {json.dumps(value)[:100]}")
    for key in record.keys() & {CHECKSUMS, CANARY}:
        _table(record[key], key)


def _values(name: str, entry: Mapping[str, Any], *, is_note: bool) -> Iterator[tuple[str, Any, str]]:
    """Yield the key, the value and the kind of each value in an entry of this name."""
    for kind, table in entry.items():
        if is_note:
            yield kind, table, kind
        elif kind in ("without", "parts"):
            if not isinstance(table, list):
                raise damaged(f"{name}.{kind} is not a list")
            yield from ((kind, value, kind) for value in table)
        else:
            # Only that of the kernels of experts is a private name.
            named = _table(table, f"{name}.{kind}").items()
            yield from ((key.lstrip("_") if value == "batched_mm" else key, value, kind) for key, value in named)


def _table(value: object, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise damaged(f"{name} is not a table")
    return value


def _check_known(name: str, table: Mapping[str, object], known: set[str]) -> None:
    if unknown := sorted(table.keys() - known):
        raise damaged(f"{name} has {unknown[0]!r}, which this version does not know")


def check_fits(model: PreTrainedModel, record: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` if a record asks for more than a part of a dense model."""
    check_record(record)
    try:
        modules, places = dict(model.named_modules()), places_of(model, record)
    except ValueError as error:
        raise InputError(str(error)) from error
    for name in record["modules"].keys() & places.keys():
        for problem in _problems(modules[places[name]], record["modules"][name]):
            raise damaged(f"{name} of {type(model).__name__} {problem}")


def _problems(module: nn.Module, entry: Mapping[str, Any]) -> Iterator[str]:
    """Yield the changes that an entry asks for and a removal cannot have made."""
    for key, shape in entry.get("tensors", {}).items():
        before = getattr(module, key, None)
        known = list(getattr(before, "shape", ()))
        if len(known) != len(shape) or any(new > old for new, old in zip(shape, known, strict=True)):
            yield f"has {key} of the shape {known}, of which {shape} is no part"
    yield from (f"cannot get {key}" for key in entry.get("added", {}) if key != "head_index" or hasattr(module, key))
    for key in entry.get("without", ()):
        if key not in {*module._parameters, *module._buffers, *module._modules}:
            yield f"has no {key!r}"
    for kind, owner in (("attributes", module), ("counts", module), ("config", getattr(module, "config", None))):
        for key, value in entry.get(kind, {}).items():
            if kind == "counts" and (key in COUNTS and not hasattr(owner, key)):
                continue
            before = getattr(owner, key, None)
            is_kernel = key == "_experts_implementation" and isinstance(value, str) and hasattr(owner, key)
            if not is_kernel and not (is_plain(before) and _is_less(value, before)):
                yield f"has {key}={before!r}, which cannot become {value!r}"


def _is_less(value: Any, before: Any) -> bool:
    """Return whether a number, or each of a list, is at most another, as after a removal."""
    if isinstance(value, list) and isinstance(before, (list, tuple)):
        return len(value) <= len(before) and all(map(_is_less, value, before))
    if isinstance(before, bool):
        return type(value) is bool
    return type(value) is type(before) and 0 <= value <= max(1, before)


def damaged(reason: str) -> DamageError:
    """Return the error about a record that cannot be used."""
    return DamageError(
        f"The record of kept heads and neurons ({RECORD_KEY!r} in config.json) cannot be used: {reason}. Export again."
    )
