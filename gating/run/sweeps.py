"""The jobs of a sweep: one that fails does not end the others, and all failures are listed at the end."""

import json
import os
import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from gating.distributed.collectives import is_rank_zero
from gating.errors import explain
from gating.tracking.redaction import redact
from gating.training.signals import Stopped, Unfinished

__all__ = ["FailureReport", "begins_later", "noting_failure"]

# In the sweep's folder; jobs may run in other processes, as with the launchers for joblib and SLURM.
_FILE = "failed.jsonl"
# What makes a setting of the command one of several values.
_SEVERAL = re.compile(r"=.*[,(*]")
# The job at which the first process has started this one.
_FIRST_JOB = "HEAD_GATING_FIRST_JOB"


class FailureReport(Callback):
    """Lists the jobs that have failed when a sweep is over, and lets the command end with exit code 1 then."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Forget the failures of an earlier sweep in the same folder.

        Raises:
            SystemExit: The folder holds files of somebody else where those of a sweep go.
        """
        path = _file_of(config)
        # In each process, since each has Hydra write its command.
        _check_own(path, path.with_name("multirun.yaml"))
        if is_rank_zero() and path.exists():
            path.unlink()

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """List what has failed."""
        path = _file_of(config)
        if not is_rank_zero() or not path.exists():
            return
        # Of settings that are given twice, the last one counts.
        given = {_name_of(line): line for line in config.hydra.overrides.task}
        fixed = {name for name, line in given.items() if not _SEVERAL.search(line)}
        failures = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        print(f"error: {len(failures)} job(s) of the sweep failed:", file=sys.stderr)
        for failure in sorted(failures, key=lambda failure: failure["job"]):
            own = [line for line in failure["overrides"] if _name_of(line) not in fixed] or failure["overrides"]
            shown = " ".join(line.lstrip("+") for line in own)
            print(f"  job {failure['job']} ({shown}): {failure['reason']}", file=sys.stderr)
        sys.exit(1)


def begins_later(job: int) -> bool:
    """Say whether the first process has started this one, which repeats its command, in a later job of the sweep."""
    if is_rank_zero():
        os.environ[_FIRST_JOB] = str(job)
    return not is_rank_zero() and job < int(os.environ.get(_FIRST_JOB, 0))


@contextmanager
def noting_failure(folder: Path, *, job: int, overrides: Sequence[str]) -> Iterator[None]:
    """Note the failure of a job in the sweep's folder, so that the next one begins; a signal ends the sweep.

    Args:
        folder: The sweep's folder.
        job: Number of the job.
        overrides: What the job sets.
    """
    try:
        yield
    except (SystemExit, Exception) as end:
        error = end.__cause__ or end.__context__ or end if isinstance(end, SystemExit) else end
        # The first process ends those that it has started, and starts others for the next job.
        if not is_rank_zero() or (isinstance(error, Stopped) and not isinstance(error, Unfinished)):
            raise
        if error is end:
            traceback.print_exc()
        reason = explain(error) if isinstance(end, SystemExit) else f"{type(error).__name__}: {explain(error)}"
        failure = {"job": job, "overrides": [redact(line) for line in overrides], "reason": redact(reason)}
        with (folder / _FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(failure) + "\n")


def _check_own(failures: Path, command: Path) -> None:
    for path, is_own in ((failures, _lists_failures), (command, _names_this_callback)):
        if os.path.lexists(path) and (path.is_symlink() or not is_own(path)):
            # Hydra turns other errors of callbacks into warnings.
            sys.exit(
                f"error: {path} is not of an earlier sweep, and this one would replace it. Choose another place with "
                "hydra.sweep.dir=FOLDER or output_dir=FOLDER."
            )


def _lists_failures(path: Path) -> bool:
    with suppress(Exception):  # Whatever it is, it is not that.
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return all(line.keys() == {"job", "overrides", "reason"} for line in lines)
    return False


def _names_this_callback(path: Path) -> bool:
    with suppress(OSError, ValueError):
        return f"{__name__}.{FailureReport.__name__}" in path.read_text(encoding="utf-8")
    return False


def _name_of(override: str) -> str:
    return override.lstrip("+").partition("=")[0]


def _file_of(config: DictConfig) -> Path:
    return Path(str(config.hydra.sweep.dir)) / _FILE
