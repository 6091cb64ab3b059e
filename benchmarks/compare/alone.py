"""Timings of a run while the other runs of a comparison stand still.

python -m benchmarks.compare.alone SETTINGS          train.py, with such timings

Comparisons that run at the same time need one empty folder for both: HEAD_GATING_BENCHMARK=FOLDER.
"""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock

from benchmarks.measuring import ROOT

__all__ = ["call", "time_alone"]

# The variable names a folder with a file for each process of a comparison, named by its ID. Whoever holds the lock in
# it may start processes or time models.
_VARIABLE, _LOCK = "HEAD_GATING_BENCHMARK", "timing.lock"
_own = tempfile.TemporaryDirectory(prefix="head-gating-runs-")


def call(arguments: Sequence[str], *, threads: int) -> str:
    """Run Python with arguments, and return the standard output.

    Raises:
        RuntimeError: It failed.
    """
    folder = Path(os.environ.get(_VARIABLE, _own.name))
    with FileLock(folder / _LOCK):
        process = subprocess.Popen(
            [sys.executable, *arguments],
            env={**os.environ, "OMP_NUM_THREADS": str(threads), _VARIABLE: str(folder)},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        (folder / str(process.pid)).touch()
    try:
        output, errors = process.communicate()
    finally:
        (folder / str(process.pid)).unlink()
        if process.returncode != 0:  # It may have ended while others stood still.
            _send(signal.SIGCONT, folder)
    if process.returncode:
        raise RuntimeError(f"{' '.join(arguments)} failed:\n{errors[-2000:]}")
    return output


def time_alone() -> None:
    """Let the other processes of the comparison stand still as long as this one times models."""
    from gating.pruning.latency.copies import TimeBudget

    stage = TimeBudget.stage
    folder = Path(os.environ[_VARIABLE])

    @contextmanager
    def alone(self: TimeBudget, **limits: Any) -> Iterator[float]:
        with FileLock(folder / _LOCK):
            try:
                _send(signal.SIGSTOP, folder)
                with stage(self, **limits) as seconds:
                    yield seconds
            finally:
                _send(signal.SIGCONT, folder)

    TimeBudget.stage = alone  # type: ignore[method-assign]


def _send(number: signal.Signals, folder: Path) -> None:
    """Send a signal to the other processes."""
    for name in (path.name for path in folder.iterdir()):
        if name.isdigit() and int(name) != os.getpid():
            with suppress(ProcessLookupError):  # It has just ended.
                os.kill(int(name), number)


if __name__ == "__main__":
    import train

    time_alone()
    train.command_line()
