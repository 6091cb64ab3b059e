"""Checksums of weights by their values, whatever files and shards they are in."""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gating.compact.files import damaged_file, weight_files

__all__ = ["digest_stored", "digest_tensors"]


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
