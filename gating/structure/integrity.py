"""Checks that a folder, and the model loaded from it, are as they were saved.

The record in ``config.json`` has under ``sha256`` a checksum of each file of weights, of the generation settings, and
of the configuration itself without its checksums. They reveal damage and mix-ups, not forgery. A loaded model has
none; saving it writes new ones.
"""

import hashlib
import json
import os
import re
import stat
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils.hub import cached_file

from .errors import DamageError, InputError, MissingFileError
from .record import CHECKSUMS, PLAIN_LOADING, RECORD_KEY, REMEDY_OF_PLAIN_LOADING, lacks_units

__all__ = [
    "CONFIG",
    "INDEX",
    "WEIGHTS",
    "check_checksums",
    "check_download",
    "check_file",
    "check_finite",
    "digest_file",
    "digest_table",
    "load_whole",
    "mixed",
    "write_checksums",
]

CONFIG = "config.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_GENERATION = "generation_config.json"
_LONGEST_JSON = 2**26
_PLAIN_NAME = re.compile(r"\w[\w.-]*")


def check_checksums(folder: Path, config: Mapping[str, Any], *, whole: bool = True) -> None:
    """Compare a folder with the checksums in its record; warn if the record has none.

    Args:
        folder: The folder of a model.
        config: The content of its ``config.json``.
        whole: Whether all saved files must be there; classes that do not generate download no generation settings.

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
            f"{folder / CONFIG} has no checksums, so damage to the files of this model is not noticed. Save the "
            "whole model again to have them.",
            stacklevel=2,
        )
        return
    if not isinstance(sums, dict):
        raise InputError(f"{folder / CONFIG} is damaged: {CHECKSUMS} is not a table. Export the model again.")
    # transformers prefers one file of weights to several, so that a new one would replace the saved ones.
    names = {CONFIG, *sums, *(name for name in (WEIGHTS, INDEX) if os.path.lexists(folder / name))}
    if os.path.lexists(folder / _GENERATION):
        names.add(_GENERATION)
    elif not whole:
        names.discard(_GENERATION)
    for name in sorted(names):
        if not _PLAIN_NAME.fullmatch(name):
            raise InputError(f"{folder / CONFIG} has a checksum of {name!r}, which is not a file of the folder.")
        if sums.get(name) != (_digest_config(config) if name == CONFIG else digest_file(folder / name)):
            raise _for_both(
                f"{folder / name} is not what was saved with this model: its checksum differs, so it is damaged or was "
                "replaced. Export the model again, or ",
                python="pass verify=False if it was changed on purpose.",
                command="load it in Python with verify=False and save it again if it was changed on purpose.",
            )


def check_download(name: str, options: Mapping[str, Any]) -> None:
    """Compare the files of a model from the hub, which are in the cache now, with their checksums.

    Args:
        name: Name on the hub.
        options: Options of the ``from_pretrained`` that has loaded it.
    """
    places = {key: options[key] for key in ("cache_dir", "revision", "subfolder", "token") if key in options}
    snapshot = Path(str(cached_file(name, CONFIG, local_files_only=True, **places))).parent
    check_checksums(snapshot, json.loads((snapshot / CONFIG).read_text(encoding="utf-8")), whole=False)


def write_checksums(folder: Path, *, places: Mapping[str, str] | None = None) -> None:
    """Write the checksums of a folder that was just saved into its record, if it has a record.

    Args:
        folder: The folder.
        places: For each Auto class, the place of the compact class; transformers writes another for some names.
    """
    path = folder / CONFIG
    if not path.is_file():
        return
    config = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(config.get(RECORD_KEY), dict):
        return
    if places:
        config["auto_map"] = dict(places)
    if PLAIN_LOADING not in config and lacks_units(config[RECORD_KEY]):
        config[PLAIN_LOADING] = REMEDY_OF_PLAIN_LOADING
    patterns = ("*.safetensors", "*.safetensors.index.json", _GENERATION)
    files = sorted(file for pattern in patterns for file in folder.glob(pattern))
    sums = {file.name: digest_file(file) for file in files}
    config[RECORD_KEY][CHECKSUMS] = {**sums, CONFIG: _digest_config(config)}
    beside = path.with_name(f".{CONFIG}.new")
    beside.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(beside, path)


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


def digest_file(path: Path) -> str:
    """Return the checksum of a file; that of JSON does not depend on its layout, which git changes on some systems."""
    check_file(path)
    if path.suffix == ".json" and path.stat().st_size <= _LONGEST_JSON:
        with suppress(ValueError, RecursionError):
            return digest_table(json.loads(path.read_text(encoding="utf-8")))
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_table(table: object) -> str:
    """Return the checksum of the content of a JSON file."""
    return hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest()


def _digest_config(config: Mapping[str, Any]) -> str:
    """Return the checksum of a configuration without its checksums."""
    record = {name: value for name, value in config[RECORD_KEY].items() if name != CHECKSUMS}
    return digest_table({**config, RECORD_KEY: record})


def load_whole(load: Callable[..., Any], folder: Path) -> PreTrainedModel:
    """Load a model, and raise ``ValueError`` unless it takes up every tensor of its folder.

    Args:
        load: Some ``from_pretrained`` with its arguments.
        folder: The folder.
    """
    # transformers would give missing weights new values; mismatches are allowed so that the error names the tensor.
    loaded: tuple[PreTrainedModel, Any] = load(ignore_mismatched_sizes=True, output_loading_info=True)
    model, found = loaded
    for kind, problem in (
        (
            "mismatched_keys",
            "has another shape in the weights than the heads and neurons in config.json ask for",
        ),
        ("missing_keys", "is not in the weights"),
        ("unexpected_keys", "is in the weights, but the heads and neurons in config.json do not keep it"),
    ):
        if found[kind]:
            first = sorted(found[kind])[0]
            if kind == "unexpected_keys" and first.startswith("head_gates."):
                raise InputError(
                    f"{folder} is a checkpoint of a search: its model still has gates. Resume the training, or load a "
                    "checkpoint of the recovery."
                )
            raise mixed(folder, f"{first if isinstance(first, str) else first[0]} {problem}")
    return model


def mixed(folder: Path, reason: str) -> DamageError:
    """Return the error about files that do not belong together."""
    message = f"{folder} is damaged or mixed from two models: {reason}. Export the model again."
    return DamageError(message, reason=reason)


def check_finite(model: nn.Module, name: object) -> None:
    """Raise ``ValueError`` if a weight of a model, called ``name`` in the message, is NaN or infinite."""
    for key, tensor in (*model.named_parameters(), *model.named_buffers()):
        # Types of a single byte are quantized; buffers may mask with infinity.
        if tensor.is_meta or not tensor.is_floating_point() or tensor.element_size() == 1 or not tensor.numel():
            continue
        low, high = tensor.detach().aminmax()
        if low.isnan() or (isinstance(tensor, nn.Parameter) and (low.isinf() or high.isinf())):
            is_half = tensor.dtype is torch.float16
            raise _for_both(
                f"{name}: {key} has values that are NaN or infinite, as after training that has diverged"
                f"{', or as numbers beyond 65504 are in float16' * is_half}. Take an earlier checkpoint"
                f"{' or another dtype' * is_half}",
                python=", or pass verify=False to load anyway.",
                command=".",
            )


def _for_both(problem: str, *, python: str, command: str) -> InputError:
    """Return an error with a remedy for users of Python and another for users of a command."""
    error = InputError(problem + python)
    error.in_command = problem + command
    return error
