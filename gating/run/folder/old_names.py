"""Former names of classes and functions.

Configurations of users and folders of earlier runs have them as ``_target_``.
"""

from collections.abc import Mapping
from typing import Any

__all__ = ["names_of", "with_new_names"]

# Former module or class: current one.
_NAMES = {
    "gating.lightning.adapters": "gating.models.adapters",
    "gating.lightning.checkpoints": "gating.training.checkpoints",
    "gating.lightning.data": "gating.data.datamodule",
    "gating.lightning.hub": "gating.models.hub",
    "gating.lightning.images": "gating.data.images",
    "gating.lightning.loggers": "gating.tracking.loggers",
    "gating.lightning.models": "gating.models.sources",
    "gating.lightning.optimizers": "gating.training.optimizers",
    "gating.lightning.sources": "gating.data.sources",
    "gating.lightning.sweeps.FailureReport": "gating.run.sweep.callback.SweepReport",
    "gating.lightning.tasks": "gating.tasks",
    "gating.lightning.text_files": "gating.data.text_files",
    "gating.run.sweeps.FailureReport": "gating.run.sweep.callback.SweepReport",
}


def with_new_names(settings: Any) -> Any:
    """Return settings with the current names of classes and functions; everything else stays.

    >>> with_new_names({"data": {"_target_": "gating.lightning.sources.load_files", "train": "a.csv"}})
    {'data': {'_target_': 'gating.data.sources.load_files', 'train': 'a.csv'}}
    """
    if isinstance(settings, Mapping):
        return {
            name: _new_name(value) if name == "_target_" and isinstance(value, str) else with_new_names(value)
            for name, value in settings.items()
        }
    return [with_new_names(value) for value in settings] if isinstance(settings, list) else settings


def names_of(target: str) -> list[str]:
    """Return the names of a class or function, the current one first.

    >>> names_of("gating.data.sources.load_files")
    ['gating.data.sources.load_files', 'gating.lightning.sources.load_files']
    """
    old = [before + target.removeprefix(now) for before, now in _NAMES.items() if _is_in(target, now)]
    return [target, *old]


def _new_name(target: str) -> str:
    for old, new in _NAMES.items():
        if _is_in(target, old):
            return new + target.removeprefix(old)
    return target


def _is_in(target: str, name: str) -> bool:
    """Return whether a dotted name is that of a module or class, or inside it."""
    return target == name or target.startswith(f"{name}.")
