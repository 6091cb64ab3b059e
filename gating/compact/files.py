"""The files of a model folder, read without trust in them: no links out of it, no pipes, no pickles."""

import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from gating.errors import DamageError, InputError, MissingFileError
from gating.loader.checksums import CONFIG, INDEX, WEIGHTS

__all__ = [
    "check_file",
    "damaged_file",
    "open_tensors",
    "read_config",
    "read_json",
    "read_shapes",
    "walk",
    "weight_files",
]

_MAX_JSON_BYTES = 2**26


def check_file(folder: Path, name: str) -> Path:
    """Return the path of a file of a folder.

    Raises:
        FileNotFoundError: It does not exist.
        ValueError: It is outside of the folder, or no regular file: reading a pipe or device may never end.
    """
    path = folder / name
    if not path.exists():
        raise MissingFileError(f"{path} does not exist.")
    home, place = folder.resolve(), path.resolve()
    # The hub's cache keeps the files of a repository beside its snapshots.
    snapshots = [parent for parent in home.parents if parent.name == "snapshots"]
    if not any(place.is_relative_to(one) for one in (home, *(one.parent / "blobs" for one in snapshots[:1]))):
        raise InputError(f"{path} leads out of the folder, to {place}; put the file itself there.")
    if not stat.S_ISREG(place.stat().st_mode):
        raise InputError(f"{path} is not a file.")
    return path


def read_config(folder: Path) -> dict[str, Any]:
    """Return the content of a folder's ``config.json``.

    Raises:
        FileNotFoundError: The folder or the file does not exist.
        ValueError: It is not a JSON object, is too large, or is a link out of the folder.
    """
    for path in (folder, folder / CONFIG):
        if not path.exists():
            raise MissingFileError(f"There is no compact model in {folder}: {path} does not exist.")
    return read_json(folder, CONFIG)


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """Return the content of a JSON file of a folder; the errors are those of :func:`read_config`."""
    path = check_file(folder, name)
    if path.stat().st_size > _MAX_JSON_BYTES:
        raise InputError(f"{path} is too large to be a {name}: {path.stat().st_size:,} bytes.")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise damaged_file(path, str(error).rstrip(".")) from error
    if not isinstance(found, dict):
        raise damaged_file(path, "it is not a table")
    return found


def weight_files(folder: Path) -> list[Path]:
    """Return the files that transformers would load the weights from.

    Raises:
        FileNotFoundError: There are none in the safetensors format.
        ValueError: The index names files of another format or outside of the folder.
    """
    if os.path.lexists(folder / WEIGHTS) or not os.path.lexists(folder / INDEX):
        try:
            return [check_file(folder, WEIGHTS)]
        except MissingFileError as error:
            raise MissingFileError(f"{str(error)[:-1]}, and weights are not read from pickles.") from None
    places = read_json(folder, INDEX).get("weight_map")
    names = set(places.values()) if isinstance(places, dict) else set()
    if not names or not all(isinstance(name, str) and name.endswith(".safetensors") for name in names):
        raise damaged_file(folder / INDEX, "it has no table weight_map with safetensors files")
    return [check_file(folder, name) for name in sorted(names)]


@contextmanager
def open_tensors(path: Path) -> Iterator[Any]:
    """Open a file of tensors, in a ``with`` block; raise ``ValueError`` if it is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError, OverflowError) as error:
        raise damaged_file(path, str(error).rstrip(".")) from error


def read_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors in the weights of a folder, by name, from the headers of the files.

    Raises:
        FileNotFoundError: There are no weights.
        ValueError: A file is damaged, not in the safetensors format or outside the folder.
    """
    found: dict[str, tuple[int, ...]] = {}
    for path in weight_files(folder):
        with open_tensors(path) as file:
            found |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
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


def damaged_file(path: Path, reason: str) -> DamageError:
    """Return the error about a file that cannot be used."""
    return DamageError(f"{path} is damaged: {reason}. Export the model again.", reason=reason)
