"""Claims of a run's folder: checked before a run loads its data, and again when it has the lock."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import filelock

from gating.errors import InputError
from gating.run.folder.checkpoints import mark_owner
from gating.run.folder.contents import CONFIG, FIRST_FILES, METRICS, RunPaths
from gating.run.folder.earlier_run import check_new, clearing
from gating.run.folder.inputs import Inputs, write_inputs
from gating.run.folder.resume import check_resumed, note_moved, return_to
from gating.run.folder.state import is_finished, owned_by_other_process, take_lock
from gating.storage.atomic import write_atomically
from gating.storage.folders import is_inside
from gating.storage.written import note_written

__all__ = ["check_claim", "claim_folder"]

# Inodes and times of change of the settings and the results that were found in a folder; None for a missing file.
FolderCheck = tuple[tuple[int, int] | None, ...]


def check_claim(paths: RunPaths, *, settings: Mapping[str, Any], resumes: bool) -> FolderCheck:
    """Check that a run can have its folders, without writing.

    Returns:
        What was found there, to compare when the run begins.

    Raises:
        InputError: Another process trains there, a folder holds checkpoints of another run, or files that no run has
            written.
        OSError: A folder cannot be written to, or holds an earlier model with other files.
    """
    found = _stamps(paths.folder)
    if resumes:
        check_resumed(paths, settings=settings)
    else:
        check_new(paths, settings=settings)
    if owned_by_other_process(paths.folder):
        raise InputError(_trained_elsewhere(paths.folder))
    return found


def claim_folder(
    paths: RunPaths,
    *,
    settings: Mapping[str, Any],
    config: str | None,
    inputs: Inputs,
    found: FolderCheck,
) -> list[filelock.BaseFileLock]:
    """Lock a run's folders, check them again, and prepare them. For rank 0.

    A new run has ``config``, its settings as YAML. ``found`` is the result of :func:`check_claim` before the data was
    loaded.

    Returns:
        The locks, which are released when the process ends.

    Raises:
        InputError: Another process trains the run or has written to its folder meanwhile, or the checkpoint cannot be
            resumed from. Nothing has changed.
    """
    locks = [take_lock(paths.folder, problem=_trained_elsewhere(paths.folder))]
    try:
        _check_unchanged(paths.folder, found, resumes=config is None)
        if not is_inside(paths.checkpoints, paths.folder):
            problem = f"paths.checkpoints={paths.checkpoints} is in use by another process: choose another folder."
            locks.append(take_lock(paths.checkpoints, problem=problem))
        check_claim(paths, settings=settings, resumes=config is None)
        if config is not None:
            with clearing(paths.folder, paths.checkpoints):
                note_written(paths.folder, *FIRST_FILES, anew=True)
                write_atomically(paths.folder / CONFIG, config)
        mark_owner(paths.folder, paths.checkpoints)
        if settings["ckpt_path"] is not None:
            return_to(Path(settings["ckpt_path"]), paths.folder, paths.checkpoints)
        if config is None:
            note_moved(paths.folder, settings)
        write_inputs(paths.folder, inputs)
    except BaseException:
        for lock in locks:
            lock.release()
        raise
    return locks


def _stamps(folder: Path) -> FolderCheck:
    stats = [(folder / name).stat() if (folder / name).is_file() else None for name in (CONFIG, METRICS)]
    return tuple(None if stat is None else (stat.st_ino, stat.st_ctime_ns) for stat in stats)


def _check_unchanged(folder: Path, found: FolderCheck, *, resumes: bool) -> None:
    """Raise ``InputError`` if another process has begun or finished a run in a folder since it was checked."""
    now = _stamps(folder)
    if now == found:
        return
    if resumes and is_finished(folder):
        raise InputError(f"Another process has finished the run in {folder} meanwhile; there is nothing to resume.")
    raise InputError(
        f"Another process has written a run to {folder} since this one was started, so nothing is replaced there. "
        "Choose another output_dir, or start again."
    )


def _trained_elsewhere(folder: Path) -> str:
    return f"The run in {folder} is being trained by another process."
