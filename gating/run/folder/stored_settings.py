"""The settings that a run keeps in its folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf

from gating.errors import InputError
from gating.run.folder.contents import CONFIG

__all__ = ["checkpoints_of", "is_run", "leaves", "read_settings_of"]

# Groups that every run has, and what to do where they are not there.
_GROUPS = ("model", "task", "data", "objective", "trainer", "callbacks", "logger", "paths")
_NO_SETTINGS = "Begin again with the whole command and overwrite=true, or in another output_dir."


def is_run(folder: Path) -> bool:
    """Say whether a folder is that of a run."""
    return (folder / CONFIG).is_file()


def read_settings_of(folder: Path, *, name: str = CONFIG) -> dict[str, Any]:
    """Return the settings of the run in a folder, as they stand there.

    Args:
        folder: The folder.
        name: The file that they are in.

    Raises:
        ValueError: There is none, or its settings are damaged.
    """
    path = folder / name
    if not path.is_file():
        raise InputError(f"There is no run in {folder} to go on with: {path} does not exist.")
    try:
        settings = OmegaConf.to_container(OmegaConf.load(path))
    except Exception as error:  # YAML's own, OmegaConf's and those of decoding.
        raise InputError(f"{path} cannot be read: {type(error).__name__}. {_NO_SETTINGS}") from error
    if not isinstance(settings, dict) or not all(isinstance(settings.get(group), dict) for group in _GROUPS):
        raise InputError(f"{path} does not have the settings of a run. {_NO_SETTINGS}")
    return cast(dict[str, Any], settings)


def checkpoints_of(folder: Path, settings: Mapping[str, Any]) -> Path:
    """Return where a run has its checkpoints; those in its folder have moved with it.

    Args:
        folder: The run's folder as it is called now.
        settings: What is stored there.
    """
    place, before = Path(str(settings["paths"].get("checkpoints"))), str(settings.get("output_dir"))
    return folder / place.relative_to(before) if place.is_relative_to(before) else place


def leaves(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Return the settings that are no groups of others, each with its dotted name."""
    found: list[tuple[str, Any]] = []
    for name, value in settings.items():
        found += leaves(value, f"{prefix}{name}.") if isinstance(value, Mapping) else [(f"{prefix}{name}", value)]
    return found
