"""Former names of classes and functions.

Configurations of users and folders of earlier runs have them as ``_target_``.
"""

from collections.abc import Mapping
from typing import Any

__all__ = ["names_of", "with_new_names"]

# Former module: current module.
_MODULES = {
    "gating.lightning.adapters": "gating.models.adapters",
    "gating.lightning.checkpoints": "gating.training.checkpoints",
    "gating.lightning.data": "gating.data.datamodule",
    "gating.lightning.hub": "gating.models.hub",
    "gating.lightning.images": "gating.data.images",
    "gating.lightning.loggers": "gating.tracking.loggers",
    "gating.lightning.models": "gating.models.sources",
    "gating.lightning.optimizers": "gating.training.optimizers",
    "gating.lightning.sources": "gating.data.sources",
    "gating.lightning.sweeps": "gating.run.sweeps",
    "gating.lightning.tasks": "gating.tasks",
    "gating.lightning.text_files": "gating.data.text_files",
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

    >>> names_of("gating.run.sweeps.FailureReport")
    ['gating.run.sweeps.FailureReport', 'gating.lightning.sweeps.FailureReport']
    """
    old = [before + target.removeprefix(now) for before, now in _MODULES.items() if target.startswith(f"{now}.")]
    return [target, *old]


def _new_name(target: str) -> str:
    for old, new in _MODULES.items():
        if target.startswith(f"{old}."):
            return new + target.removeprefix(old)
    return target
