"""The sweeper of ``sweep=...``, which runs a dense job first, as the reference."""

import re
import sys
from collections.abc import Iterable, Sequence
from types import ModuleType
from typing import Any

from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins

from gating.run.settings import has_effect

# Hydra loads its own plugins anew at this call; a class that is made from one of them before is of another one.
Plugins.instance()

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper  # noqa: E402

__all__ = ["DenseFirst", "register_sweeper", "with_dense_jobs"]

_BUDGET = re.compile(r"\+*objective\.(num_\w+|keep|speedup)(\.\w+)?=")


class DenseFirst(BasicSweeper):
    """Runs the product of the swept settings, as Hydra's basic sweeper, after the dense jobs that they compare with."""

    def _parse_config(self) -> list[str]:
        """Return the settings that the chosen group sweeps, without its budget if the command has another."""
        assert self.config is not None
        params: list[str] = super()._parse_config()
        if any(_BUDGET.match(line) for line in self.config.hydra.overrides.task):
            return [line for line in params if not _BUDGET.match(line)]
        return params

    @staticmethod
    def split_arguments(overrides: list[Override], max_batch_size: int | None) -> list[list[list[str]]]:
        """Return the overrides of all jobs, in batches."""
        (jobs,) = BasicSweeper.split_arguments(overrides, None)
        swept = [override.get_key_element() for override in overrides if override.is_sweep_override()]
        jobs = with_dense_jobs(jobs, swept=swept)
        return [list(batch) for batch in BasicSweeper.split_overrides_to_chunks(jobs, max_batch_size)]


def with_dense_jobs(jobs: Sequence[Sequence[str]], *, swept: Iterable[str]) -> list[list[str]]:
    """Return the overrides of jobs after those of the dense jobs to compare them with.

    >>> with_dense_jobs([["objective.keep=0.5", "seed=0"], ["objective.keep=0.1", "seed=0"]], swept=["objective.keep"])
    [['seed=0', 'objective=none'], ['objective.keep=0.5', 'seed=0'], ['objective.keep=0.1', 'seed=0']]
    """
    varying = set(swept)
    dense = [[line for line in job if not _without_effect(line, varying)] for job in jobs]
    first = [[*lines, "objective=none"] for number, lines in enumerate(dense) if lines not in dense[:number]]
    return [*first, *(list(job) for job in jobs if "objective=none" not in job)]


def _without_effect(line: str, varying: set[str]) -> bool:
    """Return whether an override is left out of a dense job."""
    key = line.partition("=")[0]
    name = key.lstrip("+").partition("@")[0]
    # Other settings of gates stay, but their values do not make several dense jobs.
    return not has_effect(name, on="dense run") and (name.partition(".")[0] == "objective" or key in varying)


def register_sweeper() -> None:
    """Make the sweeper known to Hydra, which instantiates plugins by names in its package of plugins alone."""
    DenseFirst.__module__ = "hydra_plugins.head_gating"
    Plugins.instance().register(DenseFirst)
    # The package exists if a plugin is installed.
    package: Any = sys.modules.setdefault("hydra_plugins", ModuleType("hydra_plugins"))
    package.head_gating = sys.modules[__name__]
