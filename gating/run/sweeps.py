"""Jobs of a sweep: a failed job does not end the others, and all failures are listed at the end."""

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
from gating.run.folder.old_names import names_of
from gating.tracking.redaction import redact
from gating.training.signals import Stopped, Unfinished

__all__ = ["FailureReport", "starts_in_later_job", "recording_failure"]

# In the sweep's folder, because launchers such as joblib's run jobs in other processes.
_FILE = "failed.jsonl"
# Overrides with several values.
_SEVERAL = re.compile(r"=.*[,(*]")
# Environment variable: the job in which rank 0 started this process.
_FIRST_JOB = "HEAD_GATING_FIRST_JOB"


class FailureReport(Callback):
    """Lists the failed jobs at the end of a sweep, and exits with code 1 if there are any."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Remove the list of failures of an earlier sweep in the same folder.

        Raises:
            SystemExit: A file of the sweep would replace a file not written by a sweep.
        """
        path = _file_of(config)
        # In each process, because Hydra writes the command in each.
        _check_own(path, path.with_name("multirun.yaml"))
        if is_rank_zero() and path.exists():
            path.unlink()

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Print the failed jobs."""
        path = _file_of(config)
        if not is_rank_zero() or not path.exists():
            return
        # The last override of a setting counts.
        given = {_name_of(line): line for line in config.hydra.overrides.task}
        fixed = {name for name, line in given.items() if not _SEVERAL.search(line)}
        failures = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        print(f"error: {len(failures)} job(s) of the sweep failed:", file=sys.stderr)
        for failure in sorted(failures, key=lambda failure: failure["job"]):
            own = [line for line in failure["overrides"] if _name_of(line) not in fixed] or failure["overrides"]
            shown = " ".join(line.lstrip("+") for line in own)
            print(f"  job {failure['job']} ({shown}): {failure['reason']}", file=sys.stderr)
        sys.exit(1)


def starts_in_later_job(job: int) -> bool:
    """Return whether rank 0 started this process, which repeats its command, in a later job of the sweep."""
    if is_rank_zero():
        os.environ[_FIRST_JOB] = str(job)
    return not is_rank_zero() and job < int(os.environ.get(_FIRST_JOB, 0))


@contextmanager
def recording_failure(folder: Path, *, job: int, overrides: Sequence[str]) -> Iterator[None]:
    """Record the failure of a job in the sweep's folder, so that the next job begins; a signal ends the sweep.

    Args:
        folder: The sweep's folder.
        job: Number of the job.
        overrides: Overrides of the job.
    """
    try:
        yield
    except (SystemExit, Exception) as end:
        error = end.__cause__ or end.__context__ or end if isinstance(end, SystemExit) else end
        # Rank 0 ends the processes that it has started, and starts others for the next job.
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
                f"error: {path} was not written by a sweep, and this one would replace it. Choose another place with "
                "hydra.sweep.dir=FOLDER or output_dir=FOLDER."
            )


def _lists_failures(path: Path) -> bool:
    with suppress(Exception):  # Any other content.
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return all(line.keys() == {"job", "overrides", "reason"} for line in lines)
    return False


def _names_this_callback(path: Path) -> bool:
    with suppress(OSError, ValueError):
        text, names = path.read_text(encoding="utf-8"), names_of(f"{__name__}.{FailureReport.__name__}")
        return any(name in text for name in names)
    return False


def _name_of(override: str) -> str:
    return override.lstrip("+").partition("=")[0]


def _file_of(config: DictConfig) -> Path:
    return Path(str(config.hydra.sweep.dir)) / _FILE
