"""What lies in a model folder, read without believing it, and the checksums that tell damage.

The record in ``config.json`` holds under ``sha256`` a checksum of every file of weights, one of the settings of
generation, and one of the configuration itself, without the checksums. They tell damage and mix-ups, not forgery: who
can change the weights can change them, too. A model that is loaded does not carry them along; saving it writes new
ones.
"""

import hashlib
import json
import math
import os
import re
import stat
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from .errors import InputError, MissingFileError
from .record import CHECKSUMS, RECORD_KEY

__all__ = ["Stored", "check_checksums", "read_config", "read_headers", "walk", "write_checksums"]

_CONFIG, _WEIGHTS, _INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
_GENERATION = "generation_config.json"
_MAX_JSON_BYTES = 2**26
_PLAIN_NAME = re.compile(r"\w[\w.-]*\.safetensors")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")


@dataclass(frozen=True)
class Stored:
    """A tensor in a file of weights.

    Attributes:
        dtype: As safetensors spells it, such as ``F32``.
        shape: Its shape.
    """

    dtype: str
    shape: tuple[int, ...]

    @property
    def num_elements(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)


def read_config(folder: Path) -> dict[str, Any]:
    """Return what a folder's ``config.json`` says.

    Raises:
        FileNotFoundError: There is no such folder or file.
        ValueError: It is no JSON, or no table, has a name twice or a number that is none, or lies outside.
    """
    for path in (folder, folder / _CONFIG):
        if not path.exists():
            raise MissingFileError(f"There is no compact model in {folder}: {path} does not exist.")
    return _read_json(folder / _CONFIG)


def walk(table: object, *, within: str = "") -> Iterator[tuple[str, object]]:
    """Yield everything in a nested table, the tables inside of it too, with its dotted name."""
    inside = table.items() if isinstance(table, dict) else enumerate(table) if isinstance(table, list) else ()
    for key, value in inside:
        yield f"{within}{key}", value
        yield from walk(value, within=f"{within}{key}.")


def read_headers(folder: Path) -> dict[str, Stored]:
    """Return the tensors that the weights of a folder are, by name, from the headers of the files.

    A file whose header and length do not fit together is refused.

    Raises:
        FileNotFoundError: There are no weights.
        ValueError: A file is damaged, is no safetensors or lies outside of the folder.
    """
    found: dict[str, Stored] = {}
    for path in _weight_files(folder):
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - it is no mapping
                    if name in found:
                        raise InputError(f"{path} is damaged: it has {name} once more. Export the model again.")
                    view = file.get_slice(name)
                    found[name] = Stored(view.get_dtype(), tuple(view.get_shape()))
        except (SafetensorError, OSError, OverflowError) as error:
            raise InputError(f"{path} is damaged ({error}). Export the model again.") from error
    return found


def check_checksums(folder: Path, config: Mapping[str, Any], *, whole: bool = True) -> None:
    """Compare a folder with the checksums in its record; warn if the record has none.

    Args:
        folder: The folder of a model.
        config: What its ``config.json`` says.
        whole: Whether all is there that was saved; from a hub come the files that a class has a use for, and only those
            that generate have one for the settings of generation.

    Raises:
        ValueError: A file is not the one that was saved.
    """
    record = config.get(RECORD_KEY)
    if not isinstance(record, dict):
        return
    sums = record.get(CHECKSUMS)
    if sums is None:
        # As when a configuration was saved alone, in the place of the one that was here.
        warnings.warn(
            f"{folder / _CONFIG} has no checksums, so damage to the files of this model is not noticed. Save the "
            "whole model again to have them.",
            stacklevel=2,
        )
        return
    if not isinstance(sums, dict):
        raise InputError(f"{folder / _CONFIG} is damaged: {CHECKSUMS} is not a table. Export the model again.")
    # Beside the files that were saved, there must be no other one that would be loaded instead.
    names = {_CONFIG, *sums, *(path.name for path in _weight_files(folder))}
    if os.path.lexists(folder / _GENERATION):
        names.add(_GENERATION)
    elif not whole:
        names.discard(_GENERATION)
    for name in sorted(names):
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise InputError(f"{folder / _CONFIG} has a checksum of {name!r}, which is not a file of the folder.")
        if sums.get(name) != (_digest_config(config) if name == _CONFIG else _digest_file(folder / name)):
            raise InputError(
                f"{folder / name} is not what was saved with this model: its checksum differs, so it is damaged or was "
                "replaced. Export the model again, or pass verify=False if it was changed on purpose."
            )


def write_checksums(folder: Path) -> None:
    """Put the checksums of a folder that was just saved into its record; nothing happens if it has no record."""
    path = folder / _CONFIG
    if not path.is_file():
        return
    config = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(config.get(RECORD_KEY), dict):
        return
    files = [
        path for pattern in ("*.safetensors", "*.safetensors.index.json", _GENERATION) for path in folder.glob(pattern)
    ]
    sums = {file.name: _digest_file(file) for file in sorted(files)}
    config[RECORD_KEY][CHECKSUMS] = {**sums, _CONFIG: _digest_config(config)}
    beside = path.with_name(f".{_CONFIG}.new")
    beside.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(beside, path)


def _weight_files(folder: Path) -> list[Path]:
    """Return the files that transformers takes the weights from."""
    if os.path.lexists(folder / _WEIGHTS):
        files = [folder / _WEIGHTS]
    elif os.path.lexists(folder / _INDEX):
        index = _read_json(folder / _INDEX)
        places = index.get("weight_map")
        if not isinstance(places, dict) or not places or not isinstance(index.get("metadata"), dict):
            raise InputError(f"{folder / _INDEX} is damaged: it has no table weight_map. Export the model again.")
        for place in places.values():
            if not isinstance(place, str) or not _PLAIN_NAME.fullmatch(place):
                raise InputError(f"{folder / _INDEX} names {place!r}, which is not a file of the folder.")
        files = [folder / place for place in sorted(set(places.values()))]
    elif any(True for pattern in _PICKLES for _ in folder.glob(pattern)):
        raise InputError(
            f"{folder} holds its weights as a pickle, which could run any code, and no {_WEIGHTS}. If you trust it, "
            "load it with transformers and save it again."
        )
    else:
        raise MissingFileError(f"There are no weights in {folder}: {_WEIGHTS} does not exist.")
    for path in files:
        _check_inside(path)
    return files


def _read_json(path: Path) -> dict[str, Any]:
    _check_inside(path)
    if path.stat().st_size > _MAX_JSON_BYTES:
        raise InputError(f"{path} is {path.stat().st_size:,} bytes large, which no {path.name} is.")
    try:
        found = json.loads(
            path.read_text(encoding="utf-8"),
            object_pairs_hook=_unique,
            parse_constant=_refuse_number,
            parse_float=lambda text: _refuse_number(text) if math.isinf(float(text)) else float(text),
        )
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged ({str(error).rstrip('.')}). Export the model again.") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} is damaged: it is not a table. Export the model again.")
    return found


def _check_inside(path: Path) -> None:
    """Make sure that a file can be read to its end and is part of the folder that it is in."""
    if not path.exists():
        raise MissingFileError(f"{path} does not exist.")
    folder, place = path.parent.resolve(), path.resolve()
    # The hub's cache keeps the files of a repository beside its snapshots.
    homes = [folder, folder.parent.parent / "blobs"] if folder.parent.name == "snapshots" else [folder]
    if not any(place.is_relative_to(home) for home in homes):
        raise InputError(f"{path} is a link out of the folder, to {place}; put the file itself there.")
    if not stat.S_ISREG(place.stat().st_mode):
        raise InputError(f"{path} is not a file.")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise InputError(f"it has {next(name for name in names if names.count(name) > 1)!r} twice")
    return found


def _refuse_number(text: str) -> float:
    raise InputError(f"{text} is no number")


def _digest_file(path: Path) -> str:
    _check_inside(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest_config(config: Mapping[str, Any]) -> str:
    """Return the checksum of a configuration without its checksums, however it is laid out in the file."""
    record = {name: value for name, value in config[RECORD_KEY].items() if name != CHECKSUMS}
    text = json.dumps({**config, RECORD_KEY: record}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
