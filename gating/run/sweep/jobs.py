"""Jobs of a sweep as they run: each is recorded and has a name, and a failed one does not end the others."""

import json
import os
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from filelock import BaseFileLock

from gating.distributed.collectives import is_rank_zero
from gating.errors import InputError, explain, shorten
from gating.run.settings import is_dense
from gating.run.sweep.records import JOBS, SWEPT, Job, jobs_of, own_overrides
from gating.storage.files import take_lock, write_atomically
from gating.tracking.redaction import redact
from gating.training.signals import Stopped, Unfinished

__all__ = [
    "begin_jobs",
    "check_own_folder",
    "leave_sweep",
    "recording_job",
    "starts_in_later_job",
    "take_sweep",
    "with_job_names",
]

# Environment variable: the job in which rank 0 started this process.
_FIRST_JOB = "HEAD_GATING_FIRST_JOB"
# W&B accepts names of up to 128 characters.
_MOST = 120


# Locks of the sweeps of this process. Not in the callback, which launchers pickle.
_locks: list[BaseFileLock] = []


def take_sweep(sweep: Path) -> None:
    """Take a folder for the sweep of this process, until its end or :func:`leave_sweep`.

    Raises:
        InputError: Another process runs a sweep there, or a run.
    """
    problem = (
        f"{sweep} is in use by another process, which runs a sweep or a run there. Wait for its end, or choose another "
        "output_dir."
    )
    _locks.append(take_lock(sweep, problem=problem))


def leave_sweep() -> None:
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


def check_own_folder(sweep: Path, folder: Path, *, number: int) -> None:
    """End a job whose folder is that of an earlier one of the same sweep, whose results it would replace.

    Raises:
        SystemExit: An earlier job has the folder.
    """
    place = os.path.relpath(folder, sweep)
    other = next((job.number for job in jobs_of(sweep) if job.number < number and job.folder == place), None)
    if other is not None:
        error = InputError(
            f"{folder} is the folder of job {other} of this sweep, too: leave hydra.sweep.subdir out, which gives each "
            "job a folder of its own."
        )
        raise SystemExit(f"error: {error}") from error


def begin_jobs(sweep: Path, *, swept: Sequence[str]) -> None:
    """Forget the jobs of an earlier sweep in the same folder, and record the settings that vary in this one."""
    for path in (sweep / JOBS).glob("*.json"):
        path.unlink(missing_ok=True)
    write_atomically(sweep / JOBS / SWEPT, json.dumps({"swept": list(swept)}) + "\n")


def _record(sweep: Path, job: Job) -> None:
    if is_rank_zero():
        write_atomically(sweep / JOBS / f"{job.number}.json", json.dumps(asdict(job)) + "\n")


def with_job_names(settings: Mapping[str, Any], *, sweep: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """Return the settings of a job, with names after its overrides and its sweep's folder in those of the loggers."""
    place = sweep.absolute()
    names = {
        "name": shorten(redact(" ".join(own_overrides(sweep, overrides))), most=_MOST),
        # The default folders are named after the date and, inside, the time.
        "group": f"{place.parent.name} {place.name}" if place.parent.name[:2].isdigit() else place.name,
        "tags": ["sweep"],
        "job_type": "dense" if is_dense(settings) else "search",
    }
    return {**settings, "logger": _named(settings["logger"], names)}


def _named(logger: Any, names: Mapping[str, Any]) -> Any:
    """Return the settings of a logger, or of several by name, with the names of a job where they have none."""
    if not isinstance(logger, Mapping):
        return logger
    given = {key: names.get(key) if value is None else value for key, value in logger.items()}
    return {key: _named(value, names) if isinstance(value, Mapping) else value for key, value in given.items()}
