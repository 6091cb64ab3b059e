"""Names of the jobs of a sweep in the loggers: name, group, tags and type of each, unless the settings give them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from gating.errors import shorten
from gating.run.sweep.budgets import is_dense
from gating.run.sweep.records import own_overrides
from gating.tracking.redaction import redact

__all__ = ["with_job_names"]

# W&B accepts names of up to 128 characters.
_MOST = 120


def with_job_names(cfg: DictConfig, *, sweep: Path, overrides: Sequence[str]) -> DictConfig:
    """Return the settings of a job with its names in those of the loggers; ``cfg`` stays.

    Args:
        cfg: The settings.
        sweep: Folder of the sweep, after which the group is named.
        overrides: Overrides of the job, after which it is named.
    """
    settings: dict[str, Any] = OmegaConf.to_container(cfg)  # type: ignore[assignment]
    place = sweep.absolute()
    names = {
        "name": shorten(redact(" ".join(own_overrides(sweep, overrides))), most=_MOST),
        # The default folders are named after the date and, inside, the time.
        "group": f"{place.parent.name} {place.name}" if place.parent.name[:2].isdigit() else place.name,
        "tags": ["sweep"],
        "job_type": "dense" if is_dense(settings) else "search",
    }
    return OmegaConf.create({**settings, "logger": _named(settings["logger"], names)})


def _named(logger: Any, names: Mapping[str, Any]) -> Any:
    """Return the settings of a logger, or of several by name, with the names of a job where they have none."""
    if not isinstance(logger, Mapping):
        return logger
    given = {key: names.get(key) if value is None else value for key, value in logger.items()}
    return {key: _named(value, names) if isinstance(value, Mapping) else value for key, value in given.items()}
