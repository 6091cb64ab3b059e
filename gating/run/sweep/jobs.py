"""Jobs of a sweep: each is recorded in the sweep's folder, and a failed one does not end the others."""

import json
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from gating.distributed.collectives import is_rank_zero
from gating.errors import explain
from gating.storage.atomic import replacing_file
from gating.storage.results import read_table
from gating.tracking.redaction import redact
from gating.training.signals import Stopped, Unfinished

__all__ = [
    "JOBS",
    "NUMBERS",
    "Job",
    "begin_jobs",
    "is_sweep",
    "jobs_of",
    "own_overrides",
    "recommended_job",
    "recording_job",
    "starts_in_later_job",
]

# In the sweep's folder, one file for each job, because launchers run jobs in other processes and on other machines.
JOBS = ".jobs"
# In the sweep's folder: the numbers of its runs, and the choice among them.
NUMBERS = "report/tradeoff.json"
# In the folder of the jobs: names of the settings that vary.
_SWEPT = "swept.json"
# Environment variable: the job in which rank 0 started this process.
_FIRST_JOB = "HEAD_GATING_FIRST_JOB"


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


def starts_in_later_job(job: int) -> bool:
    """Return whether rank 0 started this process, which repeats its command, in a later job of the sweep."""
    if is_rank_zero():
        os.environ[_FIRST_JOB] = str(job)
    return not is_rank_zero() and job < int(os.environ.get(_FIRST_JOB, 0))


@contextmanager
def recording_job(sweep: Path, folder: Path, *, number: int, overrides: Sequence[str]) -> Iterator[None]:
    """Record a job and its failure in the sweep's folder, so that the next job begins; a signal ends the sweep.

    Args:
        sweep: The sweep's folder.
        folder: Folder of the job's run.
        number: Number of the job.
        overrides: Overrides of the job.
    """
    job = Job(number, [redact(line) for line in overrides], os.path.relpath(folder, sweep))
    _record(sweep, job)
    try:
        yield
    except (SystemExit, Exception) as end:
        error = end.__cause__ or end.__context__ or end if isinstance(end, SystemExit) else end
        # Rank 0 ends the processes that it has started, and starts others for the next job.
        if not is_rank_zero() or (isinstance(error, Stopped) and not isinstance(error, Unfinished)):
            if is_rank_zero():
                print(f"Continue the sweep: the same command with output_dir={sweep} resume=auto", file=sys.stderr)
            raise
        if error is end:
            traceback.print_exc()
        reason = explain(error) if isinstance(end, SystemExit) else f"{type(error).__name__}: {explain(error)}"
        _record(sweep, replace(job, reason=redact(reason)))


def jobs_of(sweep: Path) -> list[Job]:
    """Return the jobs of a sweep in their order; empty if the folder holds no sweep."""
    names = {field.name for field in fields(Job)}
    tables = [read_table(path) for path in (sweep / JOBS).glob("*.json")]
    return sorted((Job(**table) for table in tables if table.keys() == names), key=lambda job: job.number)


def begin_jobs(sweep: Path, *, swept: Sequence[str]) -> None:
    """Forget the jobs of an earlier sweep in the same folder, and record the settings that vary in this one.

    Args:
        sweep: The sweep's folder.
        swept: Names of the settings with several values.
    """
    for path in (sweep / JOBS).glob("*.json"):
        path.unlink(missing_ok=True)
    # Failures of sweeps of earlier versions.
    (sweep / "failed.jsonl").unlink(missing_ok=True)
    _write(sweep / JOBS / _SWEPT, {"swept": list(swept)})


def is_sweep(folder: Path) -> bool:
    """Return whether a folder has the records of a sweep."""
    return read_table(folder / JOBS / _SWEPT).keys() == {"swept"}


def recommended_job(sweep: Path) -> str | None:
    """Return the folder of the recommended run, of several seeds the best, relative to the sweep's; None without one.

    Args:
        sweep: The sweep's folder, which may have been moved.
    """
    runs = read_table(sweep / NUMBERS).get("runs", [])
    chosen: dict[str, Any] = next((run for run in runs if run.get("recommended")), {})
    # Earlier versions did not record the best of several seeds.
    folder = chosen.get("best_folder") or next(iter(chosen.get("folders", [])), None)
    return None if folder is None else Path(folder).name


def own_overrides(sweep: Path, overrides: Sequence[str]) -> list[str]:
    """Return the overrides of a job in which it differs from the others of its sweep; all if it differs in none.

    Args:
        sweep: The sweep's folder.
        overrides: Overrides of the job.
    """
    swept = read_table(sweep / JOBS / _SWEPT).get("swept", [])
    lines = [line.lstrip("+") for line in overrides]
    own = [line for line in lines if line.partition("=")[0] in swept or line == "objective=none"]
    return own or lines


def _record(sweep: Path, job: Job) -> None:
    if not is_rank_zero():
        return
    _write(sweep / JOBS / f"{job.number}.json", asdict(job))


def _write(path: Path, values: dict[str, Any]) -> None:
    with replacing_file(path) as new:
        new.write_text(json.dumps(values) + "\n", encoding="utf-8")
