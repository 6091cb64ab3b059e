"""Checksums of a model folder: written into its ``head_gating.json``, and compared where the folder is loaded.

They reveal damage, mix-ups and changes, not forgery. A compact folder has those of its model in ``config.json``, too,
which are written anew when the model is saved again. The model card may change. Tokenizers are often saved again, so
that a different one is a warning.
"""

import hashlib
import json
import os
import re
import warnings
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gating.compact.files import check_file, damaged_file, open_tensors, read_json, weight_files
from gating.errors import RemedyError
from gating.loader.checksums import CHECKSUMS, CONFIG, GENERATION, INDEX, RECORD_KEY, WEIGHTS, digest_file, digest_table
from gating.storage.files import read_table
from gating.storage.hub import RECORD_FILE

__all__ = ["check_manifest", "digest_stored", "digest_tensors", "has_manifest", "read_record", "write_manifest"]

# A difference in these files changes the model; transformers takes one file of weights before several.
_OF_MODEL = re.compile(r"(config|generation_config|recipe)\.json|[\w.-]+\.safetensors(\.index\.json)?")
# The card, and code, which only trust_remote_code runs; the checksums themselves are compared when they are read.
_FREE = re.compile(rf".*\.(md|py)|{re.escape(RECORD_FILE)}")


def write_manifest(folder: Path) -> None:
    """Add the checksums of all files of a folder to its ``head_gating.json``."""
    described = read_table(folder / RECORD_FILE)
    names = (path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file())
    sums = {name: digest_file(folder / name) for name in names if name != RECORD_FILE}
    described[CHECKSUMS] = {**sums, RECORD_FILE: _digest_record(described)}
    (folder / RECORD_FILE).write_text(json.dumps(described, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _digest_record(described: Mapping[str, Any]) -> str:
    return digest_table({name: value for name, value in described.items() if name != CHECKSUMS})


def has_manifest(folder: Path) -> bool:
    """Return whether a folder has a ``head_gating.json``."""
    return os.path.lexists(folder / RECORD_FILE)


def read_record(folder: Path) -> dict[str, Any]:
    """Return the content of a folder's ``head_gating.json``.

    Raises:
        ValueError: It is damaged, or differs from its own checksum.
    """
    described = read_json(folder, RECORD_FILE)
    sums = described.get(CHECKSUMS, {})
    if not isinstance(sums, dict):
        raise damaged_file(folder / RECORD_FILE, f"{CHECKSUMS} is not a table")
    if CHECKSUMS in described and sums.get(RECORD_FILE) != _digest_record(described):
        raise _changed(folder / RECORD_FILE, RECORD_FILE)
    return described


def check_manifest(folder: Path, described: Mapping[str, Any] | None = None) -> None:
    """Compare the files of a folder with their checksums; warn if there are none.

    Args:
        folder: The folder of a model.
        described: The content of its configuration, if it is a compact folder with a record.

    Raises:
        FileNotFoundError: A file of the model is missing.
        ValueError: A file of the model, or the record, differs from what was written.
    """
    beside = read_record(folder).get(CHECKSUMS) if has_manifest(folder) else None
    place, sums = (RECORD_FILE, beside) if described is None else (CONFIG, described[RECORD_KEY].get(CHECKSUMS))
    if sums is None:
        warnings.warn(
            f"{folder} has no checksums in a {place}, so damage to the files of this model is not noticed.",
            stacklevel=2,
        )
    else:
        present = {name for name in (CONFIG, WEIGHTS, INDEX, GENERATION) if os.path.lexists(folder / name)}
        for name in sorted(present.union(filter(_OF_MODEL.fullmatch, sums))):
            if digest_file(check_file(folder, name)) != sums.get(name):
                raise _changed(folder / name, place)
    for name in sorted(beside or ()):
        is_free = _OF_MODEL.fullmatch(name) or _FREE.fullmatch(name) or not os.path.lexists(folder / name)
        if not is_free and digest_file(check_file(folder, name)) != (beside or {})[name]:
            warnings.warn(
                f"{folder / name} is not what was saved with this model: it was saved again, or is damaged.",
                stacklevel=2,
            )


def _changed(path: Path, place: str) -> RemedyError:
    """Return the error about a file that differs from the checksum in the file ``place``."""
    problem = (
        f"{path} is not what was saved with this model: its checksum in {place} differs, so it is damaged, or was "
        "replaced, edited or trained further. Export the model again"
    )
    remedy = ""
    if place == RECORD_FILE:
        problem += f"; or, if this is meant, delete {RECORD_FILE}, the record of the model that was saved"
        remedy = " Save a model that was trained again in another folder."
    return RemedyError(problem, python=f", or pass verify=False.{remedy}", command=f".{remedy}")


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
    with ExitStack() as stack:
        files = [stack.enter_context(open_tensors(path)) for path in weight_files(folder)]
        places = {name: file for file in files for name in file.keys()}  # noqa: SIM118
        return digest_tensors((name, places[name].get_tensor(name)) for name in sorted(places))
