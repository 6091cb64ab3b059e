"""Checksums of a folder in its ``head_gating.json``: written, and compared where the folder is loaded.

They reveal damage, mix-ups and changes, not forgery. The model card may change. Tokenizers are often saved again, so
that a different one is a warning.
"""

import hashlib
import json
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gating.compact.files import damaged_file, digest_checked, read_json, weight_files
from gating.errors import InputError, RemedyError
from gating.loader.checksums import CHECKSUMS, CONFIG, GENERATION, INDEX, WEIGHTS, digest_file, digest_table
from gating.storage.files import read_table
from gating.storage.hub import RECIPE_FILES, RECORD_FILE

__all__ = [
    "check_manifest",
    "digest_record",
    "digest_stored",
    "digest_tensors",
    "has_manifest",
    "read_record",
    "write_manifest",
]

# A difference in these files changes the model; transformers takes one file of weights before several.
_OF_MODEL = re.compile(r"(config|generation_config)\.json|[\w.-]+\.safetensors(\.index\.json)?")
_PLACE = re.compile(r"(\w[\w.-]*/)?\w[\w.-]*")
# The card, and code, which only trust_remote_code runs.
_FREE = re.compile(r".*\.(md|py)")


def write_manifest(folder: Path) -> None:
    """Add the checksums of all files of a folder to its ``head_gating.json``."""
    described = read_table(folder / RECORD_FILE)
    names = (path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file())
    sums = {name: digest_file(folder / name) for name in names if name != RECORD_FILE}
    described[CHECKSUMS] = {**sums, RECORD_FILE: digest_record(described)}
    (folder / RECORD_FILE).write_text(json.dumps(described, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def digest_record(described: Mapping[str, Any]) -> str:
    """Return the checksum of the content of a ``head_gating.json`` without its checksums."""
    return digest_table({name: value for name, value in described.items() if name != CHECKSUMS})


def has_manifest(folder: Path) -> bool:
    """Return whether a folder has a ``head_gating.json``."""
    return os.path.lexists(folder / RECORD_FILE)


def read_record(path: Path) -> dict[str, Any]:
    """Return the content of a ``head_gating.json``.

    Raises:
        ValueError: It is damaged, or differs from its own checksum.
    """
    described = read_json(path)
    sums = described.get(CHECKSUMS, {})
    if not isinstance(sums, dict):
        raise InputError(f"{path} is damaged: {CHECKSUMS} is not a table. Export the model again, or delete the file.")
    if CHECKSUMS in described and sums.get(RECORD_FILE) != digest_record(described):
        raise _changed(path, " differs")
    return described


def check_manifest(folder: Path, *, of_model: bool = True) -> None:
    """Compare the files of a folder with the checksums in its ``head_gating.json``, if they are there.

    Args:
        folder: The folder of a model; without ``head_gating.json``, or without checksums there, a warning says so.
        of_model: Whether to compare the files of the model; false for those with checksums in the configuration, which
            are written anew when the model is saved again, and need no ``head_gating.json``.

    Raises:
        ValueError: A file of the model, or the record, differs from what was written.
    """
    path = folder / RECORD_FILE
    sums = read_record(path).get(CHECKSUMS) if has_manifest(folder) else None
    if sums is None and not of_model:
        return
    if sums is None:
        warnings.warn(
            f"{folder} has no checksums in a {RECORD_FILE}, so damage to the files of this model is not noticed.",
            stacklevel=2,
        )
        return
    present = {name for name in (WEIGHTS, INDEX, GENERATION) if os.path.lexists(folder / name)}
    for name in sorted({CONFIG, *present, *sums} - {RECORD_FILE}):
        if not _PLACE.fullmatch(name):
            raise InputError(f"{path} has a checksum of {name!r}, which is not a file of the folder.")
        is_of_model = bool(_OF_MODEL.fullmatch(name)) or name in RECIPE_FILES
        if _FREE.fullmatch(name) or (is_of_model and not of_model):
            continue
        if is_of_model:
            if digest_checked(folder / name) != sums.get(name):
                raise _changed(
                    folder / name,
                    f" in {RECORD_FILE} differs, so it is damaged, or was replaced, edited or trained further",
                    " Save a model that was trained again in another folder.",
                )
        elif os.path.lexists(folder / name) and digest_checked(folder / name) != sums[name]:
            warnings.warn(
                f"{folder / name} is not what was saved with this model: it was saved again, or is damaged.",
                stacklevel=2,
            )


def _changed(path: Path, reason: str, remedy: str = "") -> RemedyError:
    """Return the error about a file that is not as it was written."""
    otherwise = (
        f" Export the model again; or, if this is meant, delete {RECORD_FILE}, the record of the model that was saved, "
        "which loading does not need"
    )
    problem = f"{path} is not what was saved with this model: its checksum{reason}."
    return RemedyError(problem, python=f"{otherwise}, or pass verify=False.{remedy}", command=f"{otherwise}.{remedy}")


def digest_tensors(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Return the SHA-256 checksum of tensors in the order in which they are given: names, types, shapes and bytes.

    Example:
        >>> digest_tensors([("bias", torch.ones(2))]) == digest_tensors([("bias", torch.ones(2, dtype=torch.half))])
        False
    """
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(f"{name}\n{tensor.dtype}\n{list(tensor.shape)}\n".encode())
        values = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        digest.update(values.numpy().data)
    return digest.hexdigest()


def digest_stored(folder: Path) -> str:
    """Return the checksum of the weights in a folder, of all its safetensors files together.

    Raises:
        FileNotFoundError: There are no weights.
        ValueError: A file is damaged, not in the safetensors format or outside the folder.
    """
    return digest_tensors(_stored(folder))


def _stored(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a folder in the order of their names."""
    places: dict[str, Path] = {}
    for path in weight_files(folder):
        try:
            with safe_open(path, framework="pt") as file:
                places |= dict.fromkeys(file.keys(), path)
        except (SafetensorError, OSError, OverflowError) as error:
            raise damaged_file(path, str(error).rstrip(".")) from error
    opened: dict[Path, Any] = {path: safe_open(path, framework="pt") for path in set(places.values())}
    for name in sorted(places):
        yield name, opened[places[name]].get_tensor(name)
