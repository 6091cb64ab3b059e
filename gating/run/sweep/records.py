"""Records of a sweep in its folder: its jobs, the settings that vary, and the recommended run."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from gating.storage.files import read_table

__all__ = ["JOBS", "NUMBERS", "SWEPT", "Job", "is_sweep", "jobs_of", "own_overrides", "recommended_job"]

# The sweep's folder has one file for each job, because launchers run jobs in other processes and on other machines.
JOBS = ".jobs"
# This file in that folder has the names of the settings that vary.
SWEPT = "swept.json"
# This file in the sweep's folder has the numbers of its runs, and the choice among them.
NUMBERS = "report/tradeoff.json"


@dataclass(frozen=True)
class Job:
    """One job of a sweep.

    Attributes:
        number: Its number, from 0.
        overrides: Its overrides.
        folder: Folder of its run, relative to the sweep's folder if it is inside.
        reason: Reason of its failure; None for a job that has not failed.
    """

    number: int
    overrides: list[str]
    folder: str
    reason: str | None = None

    @property
    def is_valid(self) -> bool:
        """Whether each value is of its type, as in a file that nothing else has written."""
        return (
            type(self.number) is int
            and isinstance(self.overrides, list)
            and all(isinstance(line, str) for line in self.overrides)
            and isinstance(self.folder, str)
            and isinstance(self.reason, str | None)
        )


def jobs_of(sweep: Path) -> list[Job]:
    """Return the jobs of a sweep in their order; empty if the folder holds no sweep."""
    names = {field.name for field in fields(Job)}
    tables = [read_table(path) for path in (sweep / JOBS).glob("*.json")]
    jobs = [Job(**table) for table in tables if table.keys() == names]
    return sorted((job for job in jobs if job.is_valid), key=lambda job: job.number)


def is_sweep(folder: Path) -> bool:
    """Return whether a folder has the records of a sweep."""
    return read_table(folder / JOBS / SWEPT).keys() == {"swept"}


def recommended_job(sweep: Path) -> str | None:
    """Return the folder of the recommended run, or of its best seed, relative to the sweep's; None without one."""
    runs: Any = read_table(sweep / NUMBERS).get("runs")
    tables = [run for run in runs if isinstance(run, dict)] if isinstance(runs, list) else []
    folder = next((run.get("best_folder") for run in tables if run.get("recommended")), None)
    return Path(folder).name if isinstance(folder, str) else None


def own_overrides(sweep: Path, overrides: Sequence[str]) -> list[str]:
    """Return the overrides of a job in which it differs from the others of its sweep; all if it differs in none."""
    swept = read_table(sweep / JOBS / SWEPT).get("swept", [])
    lines = [line.lstrip("+") for line in overrides]
    own = [line for line in lines if line.partition("=")[0] in swept or line == "objective=none"]
    return own or lines
