"""The files of a model folder, read without trust in them."""

import json
import math
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from gating.errors import DamageError, InputError, MissingFileError
from gating.loader.checksums import CHECKSUMS, CONFIG, GENERATION, INDEX, WEIGHTS, digest_file

__all__ = [
    "StoredTensor",
    "check_file",
    "check_listed",
    "damaged_file",
    "digest_checked",
    "read_config",
    "read_headers",
    "read_json",
    "walk",
    "weight_files",
]

_MAX_JSON_BYTES = 2**26
_PLAIN_NAME = re.compile(r"\w[\w.-]*\.safetensors")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file of weights.

    Attributes:
        dtype: Its type in the spelling of safetensors, such as ``F32``.
        shape: Its shape.
    """

    dtype: str
    shape: tuple[int, ...]

    @property
    def num_elements(self) -> int:
        """Number of its elements."""
        return math.prod(self.shape)


def read_config(folder: Path) -> dict[str, Any]:
    """Return the content of a folder's ``config.json``.

    Raises:
        FileNotFoundError: The folder or the file does not exist.
        ValueError: It is not a JSON object, has a duplicate name or a number that is not finite, is too large, or is a
            link out of the folder.
    """
    for path in (folder, folder / CONFIG):
        if not path.exists():
            raise MissingFileError(f"There is no compact model in {folder}: {path} does not exist.")
    return read_json(folder / CONFIG)


def check_file(path: Path) -> None:
    """Raise an error if a path is not a regular file inside its folder; reading a pipe or device may never end."""
    if not path.exists():
        raise MissingFileError(f"{path} does not exist.")
    folder, place = path.parent.resolve(), path.resolve()
    # The hub's cache keeps the files of a repository beside its snapshots.
    snapshots = [parent for parent in folder.parents if parent.name == "snapshots"]
    homes = [folder, *(parent.parent / "blobs" for parent in snapshots[:1])]
    if not any(place.is_relative_to(home) for home in homes):
        raise InputError(f"{path} is a link out of the folder, to {place}; put the file itself there.")
    if not stat.S_ISREG(place.stat().st_mode):
        raise InputError(f"{path} is not a file.")


def check_listed(folder: Path, record: Any) -> None:
    """Raise an error if a file with a checksum in a record, or the generation settings, is no file of the folder."""
    sums = record.get(CHECKSUMS) if isinstance(record, dict) else None
    if not isinstance(sums, (dict, type(None))):
        raise InputError(f"{folder / CONFIG} is damaged: {CHECKSUMS} is not a table. Export the model again.")
    present = {GENERATION} if os.path.lexists(folder / GENERATION) else set()
    for name in sorted(present.union(sums or ()) - {CONFIG}):
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise InputError(f"{folder / CONFIG} has a checksum of {name!r}, which is not a file of the folder.")
        check_file(folder / name)


def digest_checked(path: Path) -> str:
    """Return the checksum of a file of an untrusted folder; the errors are those of :func:`check_file`."""
    check_file(path)
    return digest_file(path)


def read_headers(folder: Path) -> dict[str, StoredTensor]:
    """Return the tensors in the weights of a folder, by name, from the headers of the files.

    Raises:
        FileNotFoundError: There are no weights.
        ValueError: A file is damaged, not in the safetensors format or outside the folder.
    """
    found: dict[str, StoredTensor] = {}
    for path in weight_files(folder):
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - it cannot be iterated over
                    if name in found:
                        raise damaged_file(path, f"it has the tensor {name} twice")
                    view = file.get_slice(name)
                    found[name] = StoredTensor(view.get_dtype(), tuple(view.get_shape()))
        except (SafetensorError, OSError, OverflowError) as error:
            raise damaged_file(path, str(error).rstrip(".")) from error
    return found


def walk(table: object, *, within: str = "") -> Iterator[tuple[str, object]]:
    """Yield each entry of a nested table, tables included, with its dotted name.

    Example:
        >>> dict(walk({"a": [1, {"b": 2}]}))
        {'a': [1, {'b': 2}], 'a.0': 1, 'a.1': {'b': 2}, 'a.1.b': 2}
    """
    inside = table.items() if isinstance(table, dict) else enumerate(table) if isinstance(table, list) else ()
    for key, value in inside:
        yield f"{within}{key}", value
        yield from walk(value, within=f"{within}{key}.")


def weight_files(folder: Path) -> list[Path]:
    """Return the files that transformers would load the weights from; raise an error on files that it must not."""
    if os.path.lexists(folder / WEIGHTS):
        files = [folder / WEIGHTS]
    elif os.path.lexists(folder / INDEX):
        index = read_json(folder / INDEX)
        places = index.get("weight_map")
        if not isinstance(places, dict) or not places or not isinstance(index.get("metadata"), dict):
            raise damaged_file(folder / INDEX, "it has no table weight_map")
        for place in places.values():
            if not isinstance(place, str) or not _PLAIN_NAME.fullmatch(place):
                raise InputError(f"{folder / INDEX} names {place!r}, which is not a file of the folder.")
        files = [folder / place for place in sorted(set(places.values()))]
    elif any(True for pattern in _PICKLES for _ in folder.glob(pattern)):
        raise InputError(
            f"{folder} holds its weights as a pickle, which could run any code, and no {WEIGHTS}. If you trust it, "
            "load it with transformers and save it again."
        )
    else:
        raise MissingFileError(f"There are no weights in {folder}: {WEIGHTS} does not exist.")
    for path in files:
        check_file(path)
    return files


def read_json(path: Path) -> dict[str, Any]:
    """Return the content of a JSON file; the errors are those of :func:`read_config`."""
    check_file(path)
    if path.stat().st_size > _MAX_JSON_BYTES:
        raise InputError(f"{path} is too large to be a {path.name}: {path.stat().st_size:,} bytes.")
    try:
        found = json.loads(
            path.read_text(encoding="utf-8"),
            object_pairs_hook=_unique,
            parse_constant=_refuse_number,
            parse_float=lambda text: _refuse_number(text) if math.isinf(float(text)) else float(text),
        )
    except (ValueError, RecursionError) as error:
        raise damaged_file(path, str(error).rstrip(".")) from error
    if not isinstance(found, dict):
        raise damaged_file(path, "it is not a table")
    return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise InputError(f"it has {next(name for name in names if names.count(name) > 1)!r} twice")
    return found


def _refuse_number(text: str) -> float:
    raise InputError(f"{text} is not a finite number")


def damaged_file(path: Path, reason: str) -> DamageError:
    """Return the error about a file that cannot be used."""
    return DamageError(f"{path} is damaged: {reason}. Export the model again.", reason=reason)
