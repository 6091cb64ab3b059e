"""The table and tensors of a recipe: a base model by name and checksum, and the values to change it by.

A folder with a recipe has no weights of its own. ``recipe.json`` names the base::

    {"format": 2, "base": "user/name", "revision": "0a1b...", "base_sha256": "...", "compact_sha256": "..."}

``recipe.safetensors`` has the factors of kept units, the weights that the base lacks, such as a new head, and biases
to which those of layers that left were added. The kept units and layers are in the record of ``config.json``, as in
every compact folder.
"""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from gating.compact.files import check_file, damaged_file, read_json
from gating.errors import DamageError
from gating.storage.results import RECIPE_FILES

__all__ = ["Recipe", "is_recipe"]

_TABLE, _TENSORS, *_ = RECIPE_FILES
_FORMAT = 2
_FOLDED, _NEW, _BIASES = "folded.", "new.", "biases."
_SHA256 = r"[0-9a-f]{64}"


def is_recipe(folder: Path) -> bool:
    """Return whether a folder holds a recipe."""
    return os.path.lexists(folder / _TABLE)


@dataclass(frozen=True)
class Recipe:
    """A compact model as changes of a base model.

    Attributes:
        base: Name of the base on the hub, or the path of its folder.
        revision: Commit on the hub; None for a folder.
        base_sha256: Checksum of the weights of the base, see :func:`~gating.compact.digests.digest_stored`.
        compact_sha256: Checksum of the weights of the compact model.
        folded: For each block, the factors of its kept units, ``[num_kept]``, float32; all 1 in blocks that are left
            out. Names are those in the base.
        new: Weights of the model that the base lacks, by name.
        biases: Biases to which those of layers that left the model were added, by name.
    """

    base: str
    revision: str | None
    base_sha256: str
    compact_sha256: str
    folded: Mapping[str, Tensor]
    new: Mapping[str, Tensor]
    biases: Mapping[str, Tensor]

    @property
    def title(self) -> str:
        """Name of the base and its revision."""
        return self.base if self.revision is None else f"{self.base} (revision {self.revision})"

    def write(self, folder: Path) -> None:
        """Write the table and the tensors into a folder."""
        tensors = {f"{_FOLDED}{name}": tensor for name, tensor in self.folded.items()}
        for kind, weights in ((_NEW, self.new), (_BIASES, self.biases)):
            tensors |= {f"{kind}{name}": tensor.detach().cpu().clone() for name, tensor in weights.items()}
        save_file(tensors, folder / _TENSORS, metadata={"format": "pt"})
        table = {
            "format": _FORMAT,
            "base": self.base,
            "revision": self.revision,
            "base_sha256": self.base_sha256,
            "compact_sha256": self.compact_sha256,
        }
        (folder / _TABLE).write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> "Recipe":
        """Read the recipe of an untrusted folder.

        Raises:
            FileNotFoundError: A file is missing.
            ValueError: A file is damaged, has unknown keys, or values that no recipe has.
        """
        table = _read_table(folder / _TABLE)
        folded, new, biases = _read_tensors(folder / _TENSORS)
        return cls(**table, folded=folded, new=new, biases=biases)


def _read_table(path: Path) -> dict[str, Any]:
    table = read_json(path)
    if type(table.get("format")) is not int or table.pop("format") != _FORMAT:
        raise damaged_file(path, f"its format is another one than {_FORMAT}, which this version reads")
    for name, pattern in _VALUES.items():
        if name not in table:
            raise damaged_file(path, f"it has no {name!r}")
        if not re.fullmatch(pattern, json.dumps(table[name], ensure_ascii=False)):
            raise damaged_file(path, f"{name} cannot be {json.dumps(table[name])[:100]}")
    if unknown := sorted(table.keys() - _VALUES.keys()):
        raise damaged_file(path, f"it has {unknown[0]!r}, which this version does not know")
    return table


# Patterns of the values in JSON.
_VALUES = {
    "base": r'"([^"\\]|\\\\){1,4096}"',
    "revision": r'null|"\w{1,64}"',
    "base_sha256": f'"{_SHA256}"',
    "compact_sha256": f'"{_SHA256}"',
}


def _read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Return the factors of kept units, the weights that the base lacks, and biases that layers have changed."""
    check_file(path)
    folded, new, biases = {}, {}, {}
    try:
        stored = load_file(path)
    except (SafetensorError, OSError, OverflowError) as error:
        raise damaged_file(path, str(error).rstrip(".")) from error
    for name, tensor in stored.items():
        if name.startswith(_FOLDED):
            folded[name.removeprefix(_FOLDED)] = _checked(path, name, tensor)
        elif name.startswith(_NEW):
            new[name.removeprefix(_NEW)] = tensor
        elif name.startswith(_BIASES):
            biases[name.removeprefix(_BIASES)] = tensor
        else:
            raise damaged_file(path, f"it has {name}, which is neither a factor nor a new weight")
    return folded, new, biases


def _checked(path: Path, name: str, factors: Tensor) -> Tensor:
    if factors.dtype != torch.float32 or factors.dim() != 1 or not (factors.isfinite() & (factors > 0)).all():
        raise _not_factors(path, name)
    return factors


def _not_factors(path: Path, name: str) -> DamageError:
    return damaged_file(path, f"{name} is not a list of finite factors above 0")
