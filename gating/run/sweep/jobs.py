"""Jobs of a sweep: their records in its folder, its lock, their names, and failures that do not end the others."""

import json
import os
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from filelock import BaseFileLock

from gating.distributed.collectives import is_rank_zero
from gating.errors import InputError, explain, shorten
from gating.run.folder import is_run
from gating.run.settings import is_dense
from gating.storage.files import read_table, take_lock, write_atomically
from gating.tracking.redaction import redact
from gating.training.signals import Stopped, Unfinished

# The sweep's folder has one file for each job, because launchers run jobs in other processes and on other machines,
# and one with the names of the settings that vary.
_JOBS, _SWEPT = ".jobs", "swept.json"
# Environment variable: the job in which rank 0 started this process.
_FIRST_JOB = "HEAD_GATING_FIRST_JOB"
_MOST = 120  # W&B accepts names of up to 128 characters.

# Locks of the sweeps of this process. Not in the callback, which launchers pickle.
_locks: list[BaseFileLock] = []


@dataclass(frozen=True)
class Job:
    """One job of a sweep: its run's folder is relative to the sweep's; it has a reason if it has failed."""

    number: int
    overrides: list[str]
    folder: str
    reason: str | None = None


def jobs_of(sweep: Path) -> list[Job]:
    """Return the jobs of a sweep in their order; empty if the folder holds no sweep."""
    names = {field.name for field in fields(Job)}
    tables = [read_table(path) for path in (sweep / _JOBS).glob("*.json")]
    return sorted((Job(**table) for table in tables if table.keys() == names), key=lambda job: job.number)


def own_overrides(sweep: Path, overrides: Sequence[str]) -> list[str]:
    """Return the overrides of a job in which it differs from the others of its sweep; all if it differs in none."""
    swept = read_table(sweep / _JOBS / _SWEPT).get("swept", [])
    lines = [line.lstrip("+") for line in overrides]
    own = [line for line in lines if line.partition("=")[0] in swept or line == "objective=none"]
    return own or lines


def begin_sweep(sweep: Path, *, swept: Sequence[str], goes_on: bool) -> None:
    """Take a folder for the sweep of this process, and record the names of the settings that vary.

    Jobs of an earlier sweep may be there if they go on, or begin again.
    """
    problem = f"{sweep} is in use by another process. Wait for its end, or choose another output_dir."
    _locks.append(take_lock(sweep, problem=problem))
    begun = next((job for job in jobs_of(sweep) if is_run(sweep / job.folder)), None)
    if begun is not None and not goes_on:
        raise InputError(
            f"{sweep} holds a sweep, with a run in {sweep / begun.folder}. Go on with it by resume=auto, begin again "
            "with overwrite=true, or choose another output_dir."
        )
    for path in (sweep / _JOBS).glob("*.json"):
        path.unlink(missing_ok=True)
    write_atomically(sweep / _JOBS / _SWEPT, json.dumps({"swept": list(swept)}) + "\n")


def end_sweep() -> None:
    """Release the folder of this process's sweep."""
    while _locks:
        _locks.pop().release()


def starts_in_later_job(job: int) -> bool:
    """Return whether rank 0 started this process, which repeats its command, in a later job of the sweep."""
    if is_rank_zero():
        os.environ[_FIRST_JOB] = str(job)
    return not is_rank_zero() and job < int(os.environ.get(_FIRST_JOB, 0))


@contextmanager
def recording_job(sweep: Path, folder: Path, *, number: int, overrides: Sequence[str]) -> Iterator[None]:
    """Record a job and its failure in the sweep's folder, so that the next job begins; a signal ends the sweep."""
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


def _record(sweep: Path, job: Job) -> None:
    if is_rank_zero():
        write_atomically(sweep / _JOBS / f"{job.number}.json", json.dumps(asdict(job)) + "\n")


def with_job_names(settings: Mapping[str, Any], *, sweep: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """Return the settings of a job, with names for W&B after its overrides and its sweep's folder."""
    place = sweep.absolute()
    names = {
        "name": shorten(redact(" ".join(own_overrides(sweep, overrides))), most=_MOST),
        # The default folders are named after the date and, inside, the time.
        "group": f"{place.parent.name} {place.name}" if place.parent.name[:2].isdigit() else place.name,
        "tags": ["sweep"],
        "job_type": "dense" if is_dense(settings) else "search",
    }
    given = {key: names.get(key) if value is None else value for key, value in settings["logger"].items()}
    return {**settings, "logger": given}
