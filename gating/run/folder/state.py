"""The folder of a run: whose it is, how far it is, and going back in it."""

import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import filelock

from gating.errors import InputError
from gating.run.folder.contents import (
    CHECKPOINTS,
    CONFIG,
    CSV,
    LOCK,
    METRICS,
    OWNER_MARK,
    REPORT,
    TEACHER,
    WANDB,
    Phase,
)
from gating.run.folder.earlier_run import check_earlier, check_links, clearing, forget_model, forget_phases
from gating.storage.atomic import replacing_file
from gating.storage.folders import check_folder
from gating.training.checkpoints import checkpoints_in, why_unusable

__all__ = [
    "check_places",
    "check_places_of",
    "has_own_checkpoints",
    "is_finished",
    "owned_by_this_process",
    "owned_by_other_process",
    "take_folder",
]

# What a run makes in its folder, as it would have to be if it were there already.
_FILES, _FOLDERS = (CONFIG, METRICS), (CHECKPOINTS, CSV, REPORT, WANDB)


def is_finished(folder: Path) -> bool:
    """Say whether a run came to its end, of which its numbers are the last thing to be written."""
    return (folder / METRICS).is_file()


def owned_by_other_process(folder: Path) -> bool:
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


def owned_by_this_process(folder: Path) -> bool:
    """Say whether this process is at a run."""
    return bool(_lock_of(folder).is_locked)


def check_places(folder: Path, checkpoints: Path, *, settings: Mapping[str, Any]) -> None:
    """Make sure that a new run can have the places it writes to, and leave no trace.

    Args:
        folder: The run's folder.
        checkpoints: Where its checkpoints are to be.
        settings: All its settings, as plain values.

    Raises:
        ValueError: Checkpoints of another run are there, or something that no run has made, or not as a run makes it.
        OSError: A place cannot be written to, or an earlier model in it has other files in its folder.
    """
    for names, is_right in ((_FILES, Path.is_file), (_FOLDERS, Path.is_dir)):
        for path in (folder / name for name in names):
            if path.exists() and not is_right(path):
                raise InputError(f"{path} is {'a file' if path.is_file() else 'a folder'}; put it out of the way.")
    if checkpoints == Path():
        raise InputError("paths.checkpoints is empty: give a folder, or leave it out.")
    if not checkpoints.resolve().is_relative_to(folder.resolve()):
        check_folder(checkpoints, overwrite=True, name="paths.checkpoints")
    check_earlier(folder, checkpoints, settings=settings)


def check_places_of(folder: Path, checkpoints: Path, *, before: str) -> None:
    """Make sure that a run which goes on has its own checkpoints, and not those of another one.

    Args:
        folder: The run's folder.
        checkpoints: Where its checkpoints are to be now.
        before: Where they were.

    Raises:
        ValueError: They are somewhere else than they were, and not in the run's folder.
    """
    check_links(folder, checkpoints)
    place = checkpoints.resolve()
    if not place.is_relative_to(folder.resolve()) and place != Path(before).resolve():
        raise InputError(
            f"The run in {folder} has its checkpoints in {before}, and this command paths.checkpoints={checkpoints}: "
            "leave it as it was, or move them into the run's folder."
        )


def has_own_checkpoints(folder: Path, checkpoints: Path) -> bool:
    """Say whether checkpoints are in a run's folder, or where this run has put them, which is noted in both places."""
    if checkpoints.resolve().is_relative_to(folder.resolve()):
        return True
    try:
        noted = (folder / OWNER_MARK).read_text(encoding="ascii")
        return bool(noted) and noted == (checkpoints / OWNER_MARK).read_text(encoding="ascii")
    except (OSError, ValueError):
        return False


def _mark(folder: Path, checkpoints: Path) -> None:
    """Note in both places that checkpoints outside of a run's folder are its own."""
    if not checkpoints.resolve().is_relative_to(folder.resolve()):
        mark = uuid.uuid4().hex
        for place in (folder, checkpoints):
            with replacing_file(place / OWNER_MARK) as new:
                new.write_text(mark, encoding="ascii")


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
        with clearing(folder, checkpoints), replacing_file(folder / CONFIG) as new:
            new.write_text(config, encoding="utf-8")
        _mark(folder, checkpoints)
    if ckpt_path is not None:
        _return_to(Path(ckpt_path), folder, checkpoints)
    return lock


def _lock_of(folder: Path) -> filelock.BaseFileLock:
    """Return the one lock of a folder that this process has; the system gives it up with the process."""
    return filelock.FileLock(folder / LOCK, is_singleton=True)


def _return_to(checkpoint: Path, folder: Path, checkpoints: Path) -> None:
    """Remove what a run wrote after one of its checkpoints, so that this is the last one."""
    phase = checkpoint.resolve().parent
    mine = checkpoints_in(phase)
    if phase.parent != checkpoints.resolve() or phase.name not in list(Phase) or checkpoint.resolve() not in mine:
        raise InputError(
            f"ckpt_path={checkpoint} is none of the checkpoints that runs go on from: those are called "
            f"{checkpoints / 'PHASE' / 'step-N.ckpt'}."
        )
    wrong = why_unusable(checkpoint)
    if wrong is not None:
        raise InputError(f"ckpt_path={checkpoint} is damaged ({wrong}); resume=auto takes the last whole one.")
    for later in mine[: mine.index(checkpoint.resolve())]:
        later.unlink()
    forget_phases(checkpoints, after=Phase(phase.name))
    if phase.name == Phase.TEACHER:
        forget_model(folder / TEACHER)


def _lock(folder: Path) -> filelock.BaseFileLock:
    lock = _lock_of(folder)
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        raise InputError(f"The run in {folder} is under way in another process.") from None
    except NotImplementedError:
        pass  # A file system without locks.
    return lock
