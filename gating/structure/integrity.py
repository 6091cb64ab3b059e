"""Checks that a folder, and the model loaded from it, are as they were saved.

The record in ``config.json`` holds under ``sha256`` a checksum of each file of weights, of the generation settings, and
of the configuration itself without its checksums. They reveal damage and mix-ups, not forgery: an author of weights can
write checksums, too. A loaded model has none; saving it writes new ones.
"""

import hashlib
import json
import os
import re
import stat
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from .errors import DamageError, InputError, MissingFileError
from .record import CHECKSUMS, RECORD_KEY

__all__ = [
    "check_checksums",
    "check_file",
    "check_finite",
    "load_whole",
    "mixed",
    "read_config",
    "read_json",
    "weight_files",
    "write_checksums",
]

_CONFIG, _WEIGHTS, _INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
_GENERATION = "generation_config.json"
_MAX_JSON_BYTES = 2**26
_PLAIN_NAME = re.compile(r"\w[\w.-]*\.safetensors")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")


def read_config(folder: Path, **parsing: Any) -> dict[str, Any]:
    """Return the content of a folder's ``config.json``.

    Args:
        folder: The folder.
        **parsing: Options of :func:`json.loads`.

    Raises:
        FileNotFoundError: The folder or the file does not exist.
        ValueError: It is not a JSON object, or it is too large or a link out of the folder.
    """
    for path in (folder, folder / _CONFIG):
        if not path.exists():
            raise MissingFileError(f"There is no compact model in {folder}: {path} does not exist.")
    return read_json(folder / _CONFIG, **parsing)


def read_json(path: Path, **parsing: Any) -> dict[str, Any]:
    """Return the JSON object in a file of a model folder; ``parsing`` are options of :func:`json.loads`."""
    check_file(path)
    if path.stat().st_size > _MAX_JSON_BYTES:
        raise InputError(f"{path} is {path.stat().st_size:,} bytes large, which no {path.name} is.")
    try:
        found = json.loads(path.read_text(encoding="utf-8"), **parsing)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged ({str(error).rstrip('.')}). Export the model again.") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} is damaged: it is not a table. Export the model again.")
    return found


def weight_files(folder: Path) -> list[Path]:
    """Return the files that transformers takes the weights from.

    Raises:
        FileNotFoundError: There are no weights.
        ValueError: The weights are a pickle, or lie outside the folder.
    """
    if os.path.lexists(folder / _WEIGHTS):
        files = [folder / _WEIGHTS]
    elif os.path.lexists(folder / _INDEX):
        index = read_json(folder / _INDEX)
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
        check_file(path)
    return files


def check_file(path: Path) -> None:
    """Raise an error if a path is not a regular file inside its folder; reading others may never end."""
    if not path.exists():
        raise MissingFileError(f"{path} does not exist.")
    folder, place = path.parent.resolve(), path.resolve()
    # The hub's cache keeps the files of a repository beside its snapshots.
    homes = [folder, folder.parent.parent / "blobs"] if folder.parent.name == "snapshots" else [folder]
    if not any(place.is_relative_to(home) for home in homes):
        raise InputError(f"{path} is a link out of the folder, to {place}; put the file itself there.")
    if not stat.S_ISREG(place.stat().st_mode):
        raise InputError(f"{path} is not a file.")


def check_checksums(folder: Path, config: Mapping[str, Any], *, whole: bool = True) -> None:
    """Compare a folder with the checksums in its record; warn if the record has none.

    Args:
        folder: The folder of a model.
        config: The content of its ``config.json``.
        whole: Whether all files that were saved are there. From a hub come only the files that a class needs, and
            classes that do not generate need no generation settings.

    Raises:
        ValueError: A file differs from the saved one.
    """
    record = config.get(RECORD_KEY)
    if not isinstance(record, dict):
        return
    sums = record.get(CHECKSUMS)
    if sums is None:
        # As after saving a configuration alone over the one of the folder.
        warnings.warn(
            f"{folder / _CONFIG} has no checksums, so damage to the files of this model is not noticed. Save the "
            "whole model again to have them.",
            stacklevel=2,
        )
        return
    if not isinstance(sums, dict):
        raise InputError(f"{folder / _CONFIG} is damaged: {CHECKSUMS} is not a table. Export the model again.")
    # The weight files, too: transformers would prefer a new file to the saved ones.
    names = {_CONFIG, *sums, *(path.name for path in weight_files(folder))}
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
    """Write the checksums of a folder that was just saved into its record, if it has a record."""
    path = folder / _CONFIG
    if not path.is_file():
        return
    config = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(config.get(RECORD_KEY), dict):
        return
    patterns = ("*.safetensors", "*.safetensors.index.json", _GENERATION)
    files = sorted(file for pattern in patterns for file in folder.glob(pattern))
    sums = {file.name: _digest_file(file) for file in files}
    config[RECORD_KEY][CHECKSUMS] = {**sums, _CONFIG: _digest_config(config)}
    beside = path.with_name(f".{_CONFIG}.new")
    beside.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(beside, path)


def _digest_file(path: Path) -> str:
    check_file(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest_config(config: Mapping[str, Any]) -> str:
    """Return the checksum of a configuration without its checksums, independent of the layout of the file."""
    record = {name: value for name, value in config[RECORD_KEY].items() if name != CHECKSUMS}
    text = json.dumps({**config, RECORD_KEY: record}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def load_whole(load: Callable[..., Any], folder: Path) -> PreTrainedModel:
    """Load a model that has to take up every tensor of its folder.

    Args:
        load: Some ``from_pretrained`` with its arguments.
        folder: The folder.

    Raises:
        ValueError: A tensor is missing, left over or of another shape.
    """
    # transformers would give missing weights new values; mismatches are allowed so that the error names the tensor.
    loaded: tuple[PreTrainedModel, Any] = load(ignore_mismatched_sizes=True, output_loading_info=True)
    model, found = loaded
    for kind, problem in (
        ("mismatched_keys", "has another shape in the weights than the heads that config.json keeps ask for"),
        ("missing_keys", "is not in the weights"),
        ("unexpected_keys", "is in the weights, but the heads in config.json do not keep it"),
    ):
        if found[kind]:
            first = sorted(found[kind])[0]
            raise mixed(folder, f"{first if isinstance(first, str) else first[0]} {problem}")
    return model


def mixed(folder: Path, reason: str) -> DamageError:
    """Return the error about files that do not belong together."""
    message = f"{folder} is damaged or mixed from two models: {reason}. Export the model again."
    return DamageError(message, reason=reason)


def check_finite(model: nn.Module, name: object) -> None:
    """Raise ``ValueError`` if a weight of a model is NaN or infinite.

    Args:
        model: The model.
        name: Its name or folder, for the message.
    """
    for key, tensor in (*model.named_parameters(), *model.named_buffers()):
        # Types of a single byte are quantized; buffers may mask with infinity.
        if tensor.is_meta or not tensor.is_floating_point() or tensor.element_size() == 1 or not tensor.numel():
            continue
        low, high = tensor.detach().aminmax()
        if low.isnan() or (isinstance(tensor, nn.Parameter) and (low.isinf() or high.isinf())):
            is_half = tensor.dtype is torch.float16
            raise InputError(
                f"{name}: {key} has values that are NaN or infinite, as after training that has diverged"
                f"{', or as numbers beyond 65504 are in float16' * is_half}. Take an earlier checkpoint"
                f"{' or another dtype' * is_half}, or pass verify=False to go on all the same."
            )
