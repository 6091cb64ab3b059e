"""A recipe: a base model by name and checksum, and what makes a compact model of it.

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

from safetensors.torch import save_file
from torch import Tensor

from gating.compact.files import check_file, damaged_file, open_tensors, read_config, read_json
from gating.compact.limits import check_trust
from gating.errors import InputError, MissingFileError, UnreachableError
from gating.loader.checksums import RECORD_KEY
from gating.storage.hub import RECIPE_FILES, download, invalid_name

__all__ = ["Recipe", "find_base", "is_recipe", "processor_folder"]

_TABLE, _TENSORS = RECIPE_FILES
_FORMAT = 2
_NAMES = {"base", "revision", "base_sha256", "compact_sha256"}


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
        table = {"format": _FORMAT, **{name: getattr(self, name) for name in sorted(_NAMES)}}
        (folder / _TABLE).write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> "Recipe":
        """Read the recipe of an untrusted folder.

        Raises:
            FileNotFoundError: A file is missing.
            ValueError: A file is damaged, or of another format.
        """
        table = read_json(folder, _TABLE)
        if table.pop("format", None) != _FORMAT or table.keys() != _NAMES:
            raise damaged_file(folder / _TABLE, f"it is not a table of format {_FORMAT}, which this version reads")
        # The revision is a part of a path in the cache of the hub.
        if not all(isinstance(value or "", str) for value in table.values()) or re.search(
            r"\W", table["revision"] or ""
        ):
            raise damaged_file(folder / _TABLE, "it has other values than names and checksums")
        with open_tensors(check_file(folder, _TENSORS)) as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        kinds: dict[str, dict[str, Tensor]] = {"folded": {}, "new": {}}
        for name, tensor in tensors.items():
            kind, _, rest = name.partition(".")
            kinds.setdefault(kind, {})[rest] = tensor
        return cls(**table, folded=kinds["folded"], new=kinds["new"])


def is_recipe(folder: Path) -> bool:
    """Return whether a folder holds a recipe."""
    return os.path.lexists(folder / _TABLE)


def find_base(
    name: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Path:
    """Return the folder of a base model, which is downloaded if no folder has this name; the rest is for the hub.

    Raises:
        FileNotFoundError: Neither a folder nor a model on the hub has this name.
        ConnectionError: The hub cannot be reached or refuses access.
        ValueError: The folder is that of a compact model, of a recipe or of an adapter, or asks for code.
    """
    folder, problem = Path(name).expanduser(), f"The base model of the recipe is {name}, and "
    if not folder.is_dir():
        if folder.is_absolute() or invalid_name(name) is not None:
            raise MissingFileError(f"{problem}there is no such folder.")
        try:
            folder = download(name, revision=revision, token=token, cache_dir=cache_dir)
        except (MissingFileError, UnreachableError) as error:
            raise type(error)(f"{problem}{error}") from error.__cause__
    described = read_config(folder)
    if is_recipe(folder) or RECORD_KEY in described:
        raise InputError(f"The base model {folder} is compact itself: name the dense model that it was made from.")
    check_trust(folder, described)
    return folder


def processor_folder(folder: Path) -> Path:
    """Return the folder with the tokenizer or processor of a model: for a recipe, that of its base, else the same.

    The errors are those of :func:`find_base`.
    """
    if not is_recipe(folder):
        return folder
    recipe = Recipe.read(folder)
    return find_base(recipe.base, revision=recipe.revision)
