"""Settings stored in the folder of a run.

Files and folders in them are absolute: a relative path means another place in another folder.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf

from gating.compact.files import walk
from gating.errors import InputError
from gating.run.folder.contents import CONFIG

__all__ = [
    "MEASURED",
    "absolute_path",
    "stored_checkpoint_folder",
    "local_places",
    "read_settings_of",
    "with_absolute_paths",
    "with_values",
]

# Settings of the objective that a measurement fills in.
MEASURED = ("keep", "cost")
# Groups of every run, and the remedy if they are missing.
_GROUPS = ("model", "task", "data", "objective", "trainer", "callbacks", "logger", "paths")
_NO_SETTINGS = "Begin again with the whole command and overwrite=true, or in another output_dir."
# Settings of this package's data, models and teachers that name a file or folder, or something on the hub.
_PLACES = {
    "data": ("train", "validation", "test", "path"),
    "model": ("name", "tokenizer"),
    "distillation": ("teacher",),
    "task": ("teacher",),
}
# In settings of a user's own classes, values with a slash and those of such a name are taken for paths.
_WORDS = ("file", "folder", "dir", "path", "root")


def read_settings_of(folder: Path, *, name: str = CONFIG) -> dict[str, Any]:
    """Return the stored settings of a run as plain values.

    Raises:
        InputError: There is no run, or its settings are damaged.
    """
    path = folder / name
    if not path.is_file():
        raise InputError(f"There is no run in {folder} to resume: {path} does not exist.")
    try:
        settings = OmegaConf.to_container(OmegaConf.load(path))
    except Exception as error:  # YAML's own, OmegaConf's and those of decoding.
        raise InputError(f"{path} cannot be read: {type(error).__name__}. {_NO_SETTINGS}") from error
    if not isinstance(settings, dict) or not all(isinstance(settings.get(group), dict) for group in _GROUPS):
        raise InputError(f"{path} does not have the settings of a run. {_NO_SETTINGS}")
    return cast(dict[str, Any], settings)


def with_values(settings: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with some of their values replaced, by dotted name, in which items of lists have numbers.

    >>> with_values({"seed": 0, "data": {"train": ["x.csv"]}}, {"data.train.0": "/x.csv"})
    {'seed': 0, 'data': {'train': ['/x.csv']}}
    """
    return {name: _replaced(value, name, values) for name, value in settings.items()}


def stored_checkpoint_folder(folder: Path, settings: Mapping[str, Any]) -> Path:
    """Return the folder of a run's checkpoints, which moves with the run's folder if it is inside."""
    place, before = Path(str(settings["paths"].get("checkpoints"))), str(settings.get("output_dir"))
    return folder / place.relative_to(before) if place.is_relative_to(before) else place


def absolute_path(value: str) -> str:
    """Return the absolute path of a file or folder; links stay."""
    return os.path.abspath(os.path.expanduser(value))


def local_places(settings: Mapping[str, Any]) -> dict[str, Path]:
    """Return the existing files and folders that settings of data, model and teacher name, by dotted name."""
    found = {}
    for group in _PLACES:
        for name, value in walk(settings.get(group), within=f"{group}."):
            if isinstance(value, str) and _is_place(settings[group], name, value):
                found[name] = Path(absolute_path(value))
    return found


def with_absolute_paths(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with absolute paths in place of relative ones.

    Names on the hub stay, and so do paths that do not exist.
    """
    absolute = {name: str(path) for name, path in local_places(settings).items()}
    for name, value in (settings.get("paths") or {}).items():
        if isinstance(value, str) and value:
            absolute[f"paths.{name}"] = absolute_path(value)
    return with_values(settings, absolute)


def _is_place(settings: Mapping[str, Any], name: str, value: str) -> bool:
    group, _, inner = name.partition(".")
    target = settings.get("_target_", "gating.")
    if str(target).startswith("gating."):
        is_named = inner in _PLACES[group]
    else:
        is_named = os.sep in value or any(word in inner.lower() for word in _WORDS) or inner in _PLACES[group]
    return is_named and bool(value) and "\0" not in value and os.path.lexists(os.path.expanduser(value))


def _replaced(value: Any, name: str, values: Mapping[str, Any]) -> Any:
    if isinstance(value, Mapping):
        return {key: _replaced(inner, f"{name}.{key}", values) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_replaced(inner, f"{name}.{number}", values) for number, inner in enumerate(value)]
    return values.get(name, value)
