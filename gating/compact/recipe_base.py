"""Places of a recipe's base model, on the hub or in a folder."""

import os
from pathlib import Path

from gating.compact.files import read_config
from gating.compact.recipe import Recipe, is_recipe
from gating.compact.trust import check_trust
from gating.errors import InputError, MissingFileError, UnreachableError, UserError
from gating.loader.checksums import RECORD_KEY
from gating.storage.hub import download, invalid_name, snapshot_of

__all__ = ["find_base", "name_base", "processor_folder"]


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
        raise InputError(f"The base model {folder} is a compact model: name the dense model that it was made from.")
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


def _unfound(name: str, reason: str, kind: type[UserError]) -> UserError:
    """Return the error about a base that is not here; another folder can be given in Python."""
    problem = f"The base model of the recipe is {name}, and {reason}"
    error = kind(f"{problem}. Or name the folder of a copy with base=...")
    error.in_command = f"{problem}."
    return error
