"""State of a run's folder: finished or not, and its owner."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from gating.errors import InputError
from gating.run.folder.contents import LOCK, METRICS

__all__ = [
    "current_folder",
    "enter_folder",
    "holding",
    "is_finished",
    "owned_by_other_process",
    "owned_by_this_process",
    "take_lock",
]

# The folder of the run in this process, for messages after an error.
_current: Path | None = None


def is_finished(folder: Path) -> bool:
    """Return whether a run is finished: its metrics are written last."""
    return (folder / METRICS).is_file()


def owned_by_other_process(folder: Path) -> bool:
    """Return whether another process trains a run; nothing is written to a folder that no process has taken."""
    if not (folder / LOCK).exists():
        return False
    try:
        with holding(folder, problem="It has the lock."):
            return False
    except InputError:
        return True


def owned_by_this_process(folder: Path) -> bool:
    """Return whether this process trains a run."""
    return bool(_lock_of(folder).is_locked)


def take_lock(folder: Path, *, problem: str) -> filelock.BaseFileLock:
    """Return the lock of a folder, which is created if needed; the system releases it with this process.

    Raises:
        InputError: Another process has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = _lock_of(folder)
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        raise InputError(problem) from None
    except NotImplementedError:
        pass  # A file system without locks.
    return lock


@contextmanager
def holding(folder: Path, *, problem: str) -> Iterator[None]:
    """Hold the lock of a folder in a ``with`` block; see :func:`take_lock`."""
    lock = take_lock(folder, problem=problem)
    try:
        yield
    finally:
        lock.release()


def current_folder() -> Path | None:
    """Return the folder of the run in this process; None before it starts."""
    return _current


def enter_folder(folder: Path | None) -> None:
    """Make a folder that of the run in this process; None before the next run of a sweep."""
    global _current
    _current = folder


def _lock_of(folder: Path) -> filelock.BaseFileLock:
    """Return this process's only lock of a folder, which the system releases with the process."""
    return filelock.FileLock(folder / LOCK, is_singleton=True)
