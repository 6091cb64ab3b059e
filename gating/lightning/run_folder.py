"""The folder of a run: whose it is, how far it is, and going back in it."""

import shutil
from pathlib import Path

import filelock

from gating.atomic import replacing_file
from gating.folder import clear_folder
from gating.lightning.checkpoints import checkpoints_in, what_is_wrong

__all__ = ["is_finished", "is_run", "is_taken", "is_under_way", "take_folder"]

# In the order that a run comes through; ``removed`` is the model between removal and recovery.
_PHASES = ("teacher", "dense", "search", "removed", "recovery")


def is_run(folder: Path) -> bool:
    """Say whether a folder is that of a run."""
    return (folder / "config.yaml").is_file()


def is_finished(folder: Path) -> bool:
    """Say whether a run came to its end, of which its numbers are the last thing to be written."""
    return (folder / "metrics.json").is_file()


def is_under_way(folder: Path) -> bool:
    """Say whether another process is at a run."""
    lock = _lock_of(folder)
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        return True
    except NotImplementedError:
        return False
    lock.release()
    return False


def is_taken(folder: Path) -> bool:
    """Say whether this process is at a run."""
    return bool(_lock_of(folder).is_locked)


def take_folder(folder: Path, checkpoints: Path, *, config: str | None, ckpt_path: str | None) -> filelock.BaseFileLock:
    """Make a run's folder ready for this process.

    Args:
        folder: The folder.
        checkpoints: Where checkpoints are.
        config: Its settings as YAML, for a new run; None for one that goes on.
        ckpt_path: The checkpoint to go back to.

    Returns:
        A lock that the process has as long as it is at the run, however it ends.

    Raises:
        ValueError: Another process is at it, or the checkpoint is none to go on from.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = _lock(folder)
    if config is not None:
        clear_folder(folder)
        _forget(checkpoints, after="")
        with replacing_file(folder / "config.yaml") as new:
            new.write_text(config, encoding="utf-8")
    if ckpt_path is not None:
        _return_to(Path(ckpt_path), checkpoints)
    return lock


def _lock_of(folder: Path) -> filelock.BaseFileLock:
    """Return the one lock of a folder that this process has; the system gives it up with the process."""
    return filelock.FileLock(folder / ".lock", is_singleton=True)


def _return_to(checkpoint: Path, checkpoints: Path) -> None:
    """Remove what a run wrote after one of its checkpoints, so that this is the last one."""
    folder = checkpoint.resolve().parent
    mine = checkpoints_in(folder)
    if folder.parent != checkpoints.resolve() or folder.name not in _PHASES or checkpoint.resolve() not in mine:
        raise ValueError(
            f"ckpt_path={checkpoint} is none of the checkpoints that runs go on from: those are called "
            f"{checkpoints / 'PHASE' / 'step-N.ckpt'}."
        )
    wrong = what_is_wrong(checkpoint)
    if wrong is not None:
        raise ValueError(f"ckpt_path={checkpoint} is damaged ({wrong}); resume=auto takes the last whole one.")
    for later in mine[: mine.index(checkpoint.resolve())]:
        later.unlink()
    _forget(checkpoints, after=folder.name)
    if folder.name == "teacher":
        shutil.rmtree(checkpoints.parent / "teacher", ignore_errors=True)


def _lock(folder: Path) -> filelock.BaseFileLock:
    lock = _lock_of(folder)
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        raise ValueError(f"The run in {folder} is under way in another process.") from None
    except NotImplementedError:
        pass  # A file system without locks.
    return lock


def _forget(checkpoints: Path, *, after: str) -> None:
    """Remove the checkpoints of the phases that come after one; of all of them after none."""
    for phase in _PHASES[_PHASES.index(after) + 1 if after else 0 :]:
        shutil.rmtree(checkpoints / phase, ignore_errors=True)
