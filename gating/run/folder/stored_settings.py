"""Settings stored in the folder of a run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf

from gating.errors import InputError
from gating.run.folder.contents import CONFIG
from gating.storage.same_settings import leaves

__all__ = ["checkpoints_of", "leaves", "read_settings_of", "with_values"]

# Groups of every run, and the remedy if they are missing.
_GROUPS = ("model", "task", "data", "objective", "trainer", "callbacks", "logger", "paths")
_NO_SETTINGS = "Begin again with the whole command and overwrite=true, or in another output_dir."


def read_settings_of(folder: Path, *, name: str = CONFIG) -> dict[str, Any]:
    """Return the stored settings of a run as plain values.

    Args:
        folder: The run's folder.
        name: File of the settings.

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
    """Return settings with some values changed.

    >>> with_values({"seed": 0, "optimizer": {"lr": 1.0}}, {"optimizer.betas": None})
    {'seed': 0, 'optimizer': {'lr': 1.0, 'betas': None}}

    Args:
        settings: Nested settings.
        values: Values by dotted name; groups that the settings lack are left out.
    """
    changed = dict(settings)
    for name, value in values.items():
        group, _, inner = name.rpartition(".")
        if not group:
            changed[inner] = value
        elif isinstance(changed.get(group), Mapping):
            changed[group] = {**changed[group], inner: value}
    return changed


def checkpoints_of(folder: Path, settings: Mapping[str, Any]) -> Path:
    """Return the folder of a run's checkpoints, which moves with the run's folder if it is inside.

    Args:
        folder: The run's current folder.
        settings: Its stored settings.
    """
    place, before = Path(str(settings["paths"].get("checkpoints"))), str(settings.get("output_dir"))
    return folder / place.relative_to(before) if place.is_relative_to(before) else place
