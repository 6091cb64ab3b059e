"""The base model of a recipe: where it is, and how it is loaded with the class and the settings of the compact one."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from gating.compact.files import damaged_file, read_config
from gating.compact.limits import checked_folder
from gating.compact.recipe import Recipe, is_recipe
from gating.compact.trust import check_trust, model_class, without_load_report
from gating.errors import InputError, MissingFileError, UnreachableError, UserError, loading
from gating.loader.checksums import CONFIG, RECORD_KEY
from gating.loader.integrity import PLAIN_LOADING
from gating.loader.record import LAYERS_KEY, dense_config
from gating.loader.record_checks import check_record
from gating.pruning.layer_settings import changed
from gating.storage.transfer import download, invalid_name, snapshot_of

__all__ = ["find_base", "load_base", "name_base", "processor_folder"]

_LAYER_NUMBER = re.compile(r"(^|\.)\d+\.")


def find_base(
    name: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Path:
    """Return the folder of a base model, which is downloaded if no folder has this name.

    Args:
        name: A folder, or a name on the hub.
        revision: Branch, tag or commit on the hub.
        token: Token of the hub; by default the one of the login.
        cache_dir: Folder of the hub's cache; by default that of huggingface_hub.

    Raises:
        FileNotFoundError: Neither a folder nor a model on the hub has this name.
        ConnectionError: The hub cannot be reached or refuses access.
        ValueError: The folder is that of a compact model, of a recipe or of an adapter, or asks for code.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir():
        if folder.is_absolute() or invalid_name(name) is not None:
            raise _unfound(name, "there is no such folder", MissingFileError)
        try:
            folder = download(name, revision=revision, token=token, cache_dir=cache_dir)
        except (MissingFileError, UnreachableError) as error:
            raise _unfound(name, str(error).rstrip("."), type(error)) from error.__cause__
    if is_recipe(folder):
        raise InputError(f"The base model {folder} is a recipe itself: name the model that it was made from.")
    described = read_config(folder)
    if RECORD_KEY in described:
        raise InputError(
            f"The base model {folder} is a compact model, which has lost units: name the dense model that it was made "
            "from."
        )
    check_trust(folder, described)
    return folder


def name_base(folder: Path) -> tuple[str, str | None]:
    """Return the name under which a base is found again: on the hub with its commit, or the path of its folder."""
    place = str(folder.absolute())
    return snapshot_of(place) or (place, None)


def processor_folder(folder: Path) -> Path:
    """Return the folder with the tokenizer or processor of a model: for a recipe, that of its base, else the same.

    The errors are those of :func:`find_base`.
    """
    if not is_recipe(folder):
        return folder
    recipe = Recipe.read(folder)
    return find_base(recipe.base, revision=recipe.revision)


def load_base(
    base: Path, recipe: Path, described: Mapping[str, Any]
) -> tuple[PreTrainedModel, PreTrainedConfig, set[str]]:
    """Load a base model with the class, the type of numbers and the settings of a compact one.

    Args:
        base: Folder of the base.
        recipe: Folder of the recipe, whose configuration is that of the compact model.
        described: The content of this configuration.

    Returns:
        The dense model in evaluation mode, the configuration of the compact one with its record, and the names of the
        weights that the base lacks or has in another shape, which have random values.

    Raises:
        ValueError: A configuration asks for code or other files, or the weights are not those of the configuration.
    """
    check_trust(recipe, described)
    if not isinstance(described.get(RECORD_KEY), dict):
        raise damaged_file(recipe / CONFIG, "it has no record of kept heads and neurons")
    check_record(described[RECORD_KEY])
    with (
        loading(f"{recipe}, made from {base},", remedy="Export the recipe again, or download the base again."),
        checked_folder(base, verify=False, exact=False, described=described),
        without_load_report(),
    ):
        config = AutoConfig.from_pretrained(recipe, trust_remote_code=False)
        vars(config).pop(PLAIN_LOADING, None)
        load: Any = model_class(config, recipe).from_pretrained
        model, found = load(
            base,
            # Layers that left the compact model are in the base.
            config=changed(dense_config(config), described[RECORD_KEY].get(LAYERS_KEY, {}).get("config", {})),
            dtype=config.dtype or torch.float32,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    lacking = {*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])}
    prefix = getattr(model, "base_model_prefix", "")
    below = f"{prefix}." if prefix and hasattr(model, prefix) else ""
    for name in sorted(lacking):
        if name.startswith(below) and _LAYER_NUMBER.search(name):
            raise InputError(
                f"{base} is not the base of this {type(model).__name__}: it lacks {name}, or has it in another shape."
            )
    return model, config, lacking


def _unfound(name: str, reason: str, kind: type[UserError]) -> UserError:
    """Return the error about a base that is not here; another folder can be given in Python."""
    problem = f"The base model of the recipe is {name}, and {reason}"
    error = kind(f"{problem}. Or name the folder of a copy with base=...")
    error.in_command = f"{problem}."
    return error
