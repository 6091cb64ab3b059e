"""The table and tensors of a recipe: a base model by name and checksum, and the values to change it by.

A folder with a recipe has no weights of its own. ``recipe.json`` names the base::

    {"format": 2, "base": "user/name", "revision": "0a1b...", "base_sha256": "...", "compact_sha256": "..."}

``recipe.safetensors`` has the factors of kept units, and the weights that the base lacks or has otherwise: a new head,
and biases to which those of layers that left were added. The kept units and layers are in the record of
``config.json``, as in every compact folder.
"""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from gating.compact.files import check_file, damaged_file, read_json
from gating.storage.hub import RECIPE_FILES

__all__ = ["Recipe", "are_factors", "is_recipe"]

_TABLE, _TENSORS = RECIPE_FILES
_FORMAT = 2
_SHA256 = r'"[0-9a-f]{64}"'
# Patterns of the values in JSON.
_VALUES = {
    "base": r'"([^"\\]|\\\\){1,4096}"',
    "revision": r'null|"\w{1,64}"',
    "base_sha256": _SHA256,
    "compact_sha256": _SHA256,
}


def is_recipe(folder: Path) -> bool:
    """Return whether a folder holds a recipe."""
    return os.path.lexists(folder / _TABLE)


@dataclass(frozen=True)
class Recipe:
    """A compact model as changes of a base model.

    Attributes:
        base: Name of the base on the hub, or the path of its folder.
        revision: Commit on the hub; None for a folder.
        base_sha256: Checksum of the weights of the base, see :func:`~gating.compact.manifest.digest_stored`.
        compact_sha256: Checksum of the weights of the compact model.
        folded: For each block, the factors of its kept units, ``[num_kept]``, float32; all 1 in blocks that are left
            out. Names are those in the base.
        new: Weights of the model that the base lacks or has otherwise, by name.
    """

    base: str
    revision: str | None
    base_sha256: str
    compact_sha256: str
    folded: Mapping[str, Tensor]
    new: Mapping[str, Tensor]

    @property
    def title(self) -> str:
        """Name of the base and its revision."""
        return self.base if self.revision is None else f"{self.base} (revision {self.revision})"

    def write(self, folder: Path) -> None:
        """Write the table and the tensors into a folder."""
        kinds = {"folded": self.folded, "new": self.new}
        tensors = {f"{kind}.{name}": one.detach().cpu().clone() for kind in kinds for name, one in kinds[kind].items()}
        save_file(tensors, folder / _TENSORS, metadata={"format": "pt"})
        table = {"format": _FORMAT, **{name: getattr(self, name) for name in _VALUES}}
        (folder / _TABLE).write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> "Recipe":
        """Read the recipe of an untrusted folder.

        Raises:
            FileNotFoundError: A file is missing.
            ValueError: A file is damaged, has unknown keys, or values that no recipe has.
        """
        path = folder / _TENSORS
        kinds: dict[str, dict[str, Tensor]] = {"folded": {}, "new": {}}
        table = read_json(folder / _TABLE)
        if type(table.get("format")) is not int or table.pop("format") != _FORMAT:
            raise damaged_file(folder / _TABLE, f"its format is another one than {_FORMAT}, which this version reads")
        if unknown := sorted(table.keys() ^ _VALUES.keys()):
            raise damaged_file(folder / _TABLE, f"{unknown[0]!r} is missing or unknown")
        for name, pattern in _VALUES.items():
            if not re.fullmatch(pattern, text := json.dumps(table[name], ensure_ascii=False)):
                raise damaged_file(folder / _TABLE, f"{name} cannot be {text[:100]}")
        check_file(path)
        try:
            stored = load_file(path)
        except (SafetensorError, OSError, OverflowError) as error:
            raise damaged_file(path, str(error).rstrip(".")) from error
        for name, tensor in stored.items():
            kind, _, rest = name.partition(".")
            if kind not in kinds:
                raise damaged_file(path, f"it has {name}, which is neither a factor nor a new weight")
            if kind == "folded" and not are_factors(tensor):
                raise damaged_file(path, f"{name} is not a list of finite factors above 0")
            kinds[kind][rest] = tensor
        return cls(**table, folded=kinds["folded"], new=kinds["new"])


def are_factors(tensor: Tensor) -> bool:
    """Return whether a tensor is a list of finite factors above 0, ``[num_units]``, float32."""
    is_list = tensor.dtype == torch.float32 and tensor.dim() == 1
    return is_list and bool((tensor.isfinite() & (tensor > 0)).all())
