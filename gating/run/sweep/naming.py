"""Names of the jobs of a sweep in the loggers: name, group, tags and type of each, unless the settings give them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from gating.errors import shorten
from gating.run.sweep.budgets import is_dense
from gating.tracking.redaction import redact

__all__ = ["job_names", "with_job_names"]

# Overrides without a place in the name of a job: they are the same in all jobs, or no settings of the run.
_LEFT_OUT = ("hydra", "logger", "output_dir", "overwrite", "resume", "paths", "sweep", "hparams_search")
# W&B accepts names of up to 128 characters.
_MOST = 120


def with_job_names(cfg: DictConfig, *, sweep: Path) -> DictConfig:
    """Return the settings of a job of Hydra with its names in those of the loggers; ``cfg`` stays."""
    settings: dict[str, Any] = OmegaConf.to_container(cfg)  # type: ignore[assignment]
    names = job_names(HydraConfig.get().overrides.task, sweep=sweep, dense=is_dense(settings))
    return OmegaConf.create({**settings, "logger": _named(settings["logger"], names)})


def job_names(overrides: Sequence[str], *, sweep: Path, dense: bool) -> dict[str, Any]:
    """Return the name, group, tags and type of a job.

    Args:
        overrides: Overrides of the job.
        sweep: Folder of the sweep, after which the group is named.
        dense: Whether the job is a dense run.

    >>> job_names(["+sweep=heads", "objective.keep=0.5", "seed=1"], sweep=Path("sweeps/first"), dense=False)
    {'name': 'objective.keep=0.5 seed=1', 'group': 'first', 'tags': ['sweep'], 'job_type': 'search'}
    """
    place = sweep.absolute()
    lines = [line.lstrip("+") for line in overrides]
    own = [line for line in lines if line.partition("=")[0].partition(".")[0] not in _LEFT_OUT]
    # The default folders are named after the date and, inside, the time.
    group = f"{place.parent.name} {place.name}" if place.parent.name[:2].isdigit() else place.name
    name = shorten(redact(" ".join(own)), most=_MOST)
    return {"name": name, "group": group, "tags": ["sweep"], "job_type": "dense" if dense else "search"}


def _named(logger: Any, names: Mapping[str, Any]) -> Any:
    """Return the settings of a logger, or of several by name, with the names of a job where they have none."""
    if not isinstance(logger, Mapping):
        return logger
    given = {key: names.get(key) if value is None else value for key, value in logger.items()}
    return {key: _named(value, names) if isinstance(value, Mapping) else value for key, value in given.items()}
