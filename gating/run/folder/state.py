"""State of a run's folder: finished or not, its owner, and the return to an earlier checkpoint."""

import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import filelock

from gating.distributed.collectives import is_rank_zero
from gating.errors import InputError
from gating.run.folder.contents import (
    CONFIG,
    FOLDERS,
    LOCK,
    METRICS,
    OWNER_MARK,
    RECORD_FILES,
    TEACHER,
    Phase,
    RunPaths,
)
from gating.run.folder.earlier_run import check_earlier, check_links, clearing, remove_model, remove_phases
from gating.run.folder.inputs import Inputs, write_inputs
from gating.storage.atomic import replacing_file
from gating.storage.folders import check_folder
from gating.training.checkpoints import checkpoints_in, remove_checkpoint, why_unusable

__all__ = [
    "check_writable",
    "check_own_checkpoints",
    "current_folder",
    "has_own_checkpoints",
    "is_finished",
    "owned_by_this_process",
    "leave_folder",
    "owned_by_other_process",
    "claim_folder",
]

# The folder of the run in this process, for messages after an error.
_current: Path | None = None


def is_finished(folder: Path) -> bool:
    """Return whether a run is finished: its metrics are written last."""
    return (folder / METRICS).is_file()


def owned_by_other_process(folder: Path) -> bool:
    """Return whether another process trains a run."""
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
    """Return whether this process trains a run."""
    return bool(_lock_of(folder).is_locked)


def check_writable(folder: Path, checkpoints: Path, *, settings: Mapping[str, Any]) -> None:
    """Check that a new run can write to its folders, without writing.

    Args:
        folder: The run's folder.
        checkpoints: Folder of its checkpoints.
        settings: All its settings, as plain values.

    Raises:
        InputError: A folder holds checkpoints of another run, or files that no run has written.
        OSError: A folder cannot be written to, or holds an earlier model with other files.
    """
    for names, is_right in ((RECORD_FILES, Path.is_file), (FOLDERS, Path.is_dir)):
        for path in (folder / name for name in names):
            if path.exists() and not is_right(path):
                raise InputError(f"{path} is {'a file' if path.is_file() else 'a folder'}; move or remove it.")
    if checkpoints == Path():
        raise InputError("paths.checkpoints is empty: give a folder, or leave it out.")
    if not checkpoints.resolve().is_relative_to(folder.resolve()):
        check_folder(checkpoints, overwrite=True, name="paths.checkpoints")
    check_earlier(folder, checkpoints, settings=settings)


def check_own_checkpoints(folder: Path, checkpoints: Path, *, before: str) -> None:
    """Check that the checkpoints of a resumed run are its own.

    Args:
        folder: The run's folder.
        checkpoints: Folder of its checkpoints by the settings of the command.
        before: Folder of its checkpoints by its stored settings.

    Raises:
        InputError: The folders differ, and the new one is not inside the run's folder.
    """
    check_links(folder, checkpoints)
    place = checkpoints.resolve()
    if not place.is_relative_to(folder.resolve()) and place != Path(before).resolve():
        raise InputError(
            f"The run in {folder} has its checkpoints in {before}, and this command paths.checkpoints={checkpoints}: "
            "leave it unchanged, or move them into the run's folder."
        )


def has_own_checkpoints(folder: Path, checkpoints: Path) -> bool:
    """Return whether checkpoints are inside a run's folder, or have the same owner mark as the folder."""
    if checkpoints.resolve().is_relative_to(folder.resolve()):
        return True
    try:
        mark = (folder / OWNER_MARK).read_text(encoding="ascii")
        return bool(mark) and mark == (checkpoints / OWNER_MARK).read_text(encoding="ascii")
    except (OSError, ValueError):
        return False


def _mark(folder: Path, checkpoints: Path) -> None:
    """Mark checkpoints outside a run's folder as its own, in both folders."""
    if not checkpoints.resolve().is_relative_to(folder.resolve()):
        mark = uuid.uuid4().hex
        for place in (folder, checkpoints):
            with replacing_file(place / OWNER_MARK) as new:
                new.write_text(mark, encoding="ascii")


def claim_folder(
    paths: RunPaths, *, config: str | None, inputs: Inputs, ckpt_path: str | None
) -> filelock.BaseFileLock | None:
    """Prepare and lock a run's folder, and make it the current folder.

    Args:
        paths: Folders of the run.
        config: Its settings as YAML, for a new run; None for a resumed one.
        inputs: Its data, and the folders that it reads; those that it goes on with if it is resumed.
        ckpt_path: Checkpoint to return to.

    Returns:
        The lock, which is released when the process ends; None on ranks other than 0.

    Raises:
        InputError: Another process trains the run, or the checkpoint cannot be resumed from.
    """
    global _current
    lock = None
    if is_rank_zero():
        paths.folder.mkdir(parents=True, exist_ok=True)
        lock = _lock(paths.folder)
        if config is not None:
            with clearing(paths.folder, paths.checkpoints), replacing_file(paths.folder / CONFIG) as new:
                new.write_text(config, encoding="utf-8")
            _mark(paths.folder, paths.checkpoints)
        if ckpt_path is not None:
            _return_to(Path(ckpt_path), paths.folder, paths.checkpoints)
        write_inputs(paths.folder, inputs)
    _current = paths.folder
    return lock


def current_folder() -> Path | None:
    """Return the folder of the run in this process; None before it starts."""
    return _current


def leave_folder() -> None:
    """Clear the current folder before the next run of a sweep."""
    global _current
    _current = None


def _lock_of(folder: Path) -> filelock.BaseFileLock:
    """Return this process's only lock of a folder, which the system releases with the process."""
    return filelock.FileLock(folder / LOCK, is_singleton=True)


def _return_to(checkpoint: Path, folder: Path, checkpoints: Path) -> None:
    """Make a checkpoint the last one of a run: remove everything written after it."""
    phase = checkpoint.resolve().parent
    mine = checkpoints_in(phase)
    if phase.parent != checkpoints.resolve() or phase.name not in list(Phase) or checkpoint.resolve() not in mine:
        raise InputError(
            f"ckpt_path={checkpoint} is not a checkpoint of this run; checkpoints are "
            f"{checkpoints / 'PHASE' / 'step-N.ckpt'}."
        )
    wrong = why_unusable(checkpoint)
    if wrong is not None:
        raise InputError(f"ckpt_path={checkpoint} is damaged ({wrong}); resume=auto takes the last undamaged one.")
    for later in mine[: mine.index(checkpoint.resolve())]:
        remove_checkpoint(later)
    remove_phases(checkpoints, after=Phase(phase.name))
    if phase.name == Phase.TEACHER:
        remove_model(folder / TEACHER)


def _lock(folder: Path) -> filelock.BaseFileLock:
    lock = _lock_of(folder)
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        raise InputError(f"The run in {folder} is being trained by another process.") from None
    except NotImplementedError:
        pass  # A file system without locks.
    return lock
