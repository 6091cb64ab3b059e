"""Recipes: a base model by name and checksum, and its kept units and factors.

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
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, GenerationConfig, PreTrainedModel

from gating.compact.files import (
    check_file,
    check_manifest,
    damaged_file,
    digest_stored,
    digest_tensors,
    find_folder,
    open_tensors,
    read_config,
    read_json,
)
from gating.compact.limits import check_trust, checked_folder, model_class, without_load_report
from gating.errors import InputError, loading
from gating.loader.integrity import check_finite
from gating.loader.modeling import GENERATION, PLAIN_LOADING, RECORD_KEY
from gating.loader.record import LAYERS_KEY, dense_config
from gating.loader.record_checks import check_fits, check_record
from gating.pruning.layers import changed
from gating.pruning.repeat import remove_recorded
from gating.storage.hub import RECIPE_FILES

__all__ = [
    "Recipe",
    "build_compact",
    "digest_model",
    "find_base",
    "is_recipe",
    "load_recipe",
    "processor_folder",
]

_TABLE, _TENSORS = RECIPE_FILES
_FORMAT = 2


@dataclass(frozen=True)
class Recipe:
    """A compact model as changes of a base model.

    Attributes:
        base: Name of the base on the hub, or the path of its folder.
        revision: Commit on the hub; None for a folder.
        base_sha256: Checksum of the weights of the base, see :func:`~gating.compact.files.digest_stored`.
        compact_sha256: Checksum of the weights of the compact model.
        folded: For each block, the factors of its kept units, ``[num_kept]``; all 1 in blocks that are left out. Names
            are those in the base.
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
        table = {"format": _FORMAT, **vars(self)}
        kinds = {kind: table.pop(kind) for kind in ("folded", "new")}
        tensors = {f"{kind}.{name}": one.detach().cpu().clone() for kind in kinds for name, one in kinds[kind].items()}
        save_file(tensors, folder / _TENSORS, metadata={"format": "pt"})
        (folder / _TABLE).write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> "Recipe":
        """Read the recipe of an untrusted folder; raise ``ValueError`` if it is damaged or of another format."""
        table = read_json(folder, _TABLE)
        kinds: dict[str, dict[str, Tensor]] = {"folded": {}, "new": {}}
        with loading(str(folder), remedy="Export the recipe again."):
            # The revision is a part of a path in the cache of the hub.
            if table.pop("format") != _FORMAT or re.search(r"\W", table["revision"] or ""):
                raise damaged_file(folder / _TABLE, f"its format is not {_FORMAT}, or its revision is no commit")
            with open_tensors(check_file(folder, _TENSORS)) as file:
                for name in file.keys():  # noqa: SIM118
                    kind, _, rest = name.partition(".")
                    kinds[kind][rest] = file.get_tensor(name)
            return cls(**{**table, "base": os.fspath(table["base"])}, folded=kinds["folded"], new=kinds["new"])


def is_recipe(folder: Path) -> bool:
    """Return whether a folder holds a recipe."""
    return os.path.lexists(folder / _TABLE)


def find_base(name: str, **options: Any) -> Path:
    """Return the folder of a base model; the options and errors are those of :func:`~gating.compact.files.find_folder`.

    Raises:
        ValueError: The folder is that of a compact model, of a recipe or of an adapter, or asks for code.
    """
    folder = find_folder(name, is_base=True, **options)
    described = read_config(folder)
    if is_recipe(folder) or RECORD_KEY in described:
        raise InputError(f"The base model {folder} is compact itself: name the dense model that it was made from.")
    check_trust(folder, described)
    return folder


def processor_folder(folder: Path) -> Path:
    """Return the folder with the tokenizer or processor of a model: for a recipe, that of its base, else the same."""
    if not is_recipe(folder):
        return folder
    recipe = Recipe.read(folder)
    return find_base(recipe.base, revision=recipe.revision)


def load_recipe(
    folder: Path,
    *,
    base: str | os.PathLike[str] | None = None,
    dtype: torch.dtype | None = None,
    verify: bool = True,
    **options: Any,
) -> PreTrainedModel:
    """Build the compact model of a recipe; the arguments and errors are those of ``load_compact``.

    With ``verify``, the files of the folder, the weights of the base and those of the result are compared with their
    checksums.
    """
    described = read_config(folder)
    if verify:
        check_manifest(folder)
    recipe = Recipe.read(folder)
    name, revision = (recipe.base, recipe.revision) if base is None else (os.fspath(base), None)
    place = find_base(name, revision=revision, **options)
    if verify and recipe.base_sha256 != digest_stored(place):
        raise InputError(
            f"The weights in {place} are not those of the base model of this recipe, {recipe.title}. Bring back the "
            "base that the recipe was made from, or name it with base=... in Python."
        )
    with loading(str(folder), remedy="Export the recipe again."):
        model, lacking = build_compact(folder, place, described, recipe.folded)
        if lost := sorted(lacking - set(recipe.new)):
            raise damaged_file(folder, f"{lost[0]} is neither in the base model nor in the recipe")
        model.load_state_dict(recipe.new, strict=False)
        if os.path.lexists(folder / GENERATION):
            check_file(folder, GENERATION)
            model.generation_config = GenerationConfig.from_pretrained(folder)
    if verify and recipe.compact_sha256 != digest_model(model):
        raise InputError(
            f"{folder} does not give the compact model that was saved: its weights have another checksum than with "
            f"transformers {described.get('transformers_version')}. Install that, or export the recipe again."
        )
    if verify:
        check_finite(model, folder)
    if dtype is not None:
        # Buffers such as rotary frequencies keep their precision.
        for parameter in model.parameters():
            parameter.data = parameter.data.to(dtype)
        model.config.dtype = dtype
    model.eval()
    return model


def build_compact(
    recipe: Path, base: Path, described: Mapping[str, Any], folded: Mapping[str, Tensor]
) -> tuple[PreTrainedModel, set[str]]:
    """Load a base model, remove the units that a record lacks, and fold factors into the others.

    Args:
        recipe: The folder of the recipe, of which the configuration is read.
        base: The folder of the base.
        described: The configuration of the recipe, with the record; it is checked.
        folded: Factors of the kept units of each block, ``[num_kept]``; all 1 in blocks that are left out.

    Returns:
        The compact model, and the names of the weights that the base lacks or has in another shape, which are random.
    """
    check_trust(recipe, described)
    check_record(described.get(RECORD_KEY))
    record = described[RECORD_KEY]
    with checked_folder(base, verify=False, described=described), without_load_report():
        config = AutoConfig.from_pretrained(recipe, trust_remote_code=False)
        vars(config).pop(PLAIN_LOADING, None)
        load: Any = model_class(config, recipe).from_pretrained
        model, found = load(
            base,
            # Layers that left the compact model are in the base.
            config=changed(dense_config(config), record.get(LAYERS_KEY, {}).get("config", {})),
            dtype=config.dtype or torch.float32,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    # Another version of transformers may have other names.
    check_fits(model, record)
    remove_recorded(model, record, folded=folded)
    return model, {*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])}


def digest_model(model: PreTrainedModel) -> str:
    """Return the checksum of the weights of a model, of those that are tied once."""
    tied = getattr(model, "all_tied_weights_keys", None) or ()
    return digest_tensors((name, tensor) for name, tensor in sorted(model.state_dict().items()) if name not in tied)
