"""Claims of a run's folder: checked before a run loads its data, and again when it has the lock."""

import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import filelock
from omegaconf import OmegaConf

from gating.errors import InputError
from gating.run.folder.checkpoints import check_recorded, remove_phases
from gating.run.folder.contents import (
    CHECKPOINTS,
    CONFIG,
    FIRST_FILES,
    FOLDERS,
    METRICS,
    OWNER_MARK,
    RECORD_FILES,
    STATE_FILES,
    TEACHER,
    Phase,
    RunPaths,
)
from gating.run.folder.earlier_run import (
    check_earlier,
    check_links,
    check_resumed,
    check_teacher,
    clearing,
    remove_model,
)
from gating.run.folder.inputs import Inputs, write_inputs
from gating.run.folder.state import enter_folder, is_finished, owned_by_other_process, owner_of, take_lock
from gating.run.folder.stored_settings import local_places, read_settings_of, with_values
from gating.storage.atomic import replacing_file
from gating.storage.folders import check_folder, is_inside
from gating.storage.same_settings import leaves
from gating.storage.written import note_written
from gating.training.checkpoints import (
    found_checkpoints,
    note_checkpoint,
    recorded_checkpoints,
    remove_checkpoint,
    why_unusable,
)

__all__ = ["FolderCheck", "check_claim", "claim_folder"]

# Inodes and times of change of the settings and the results that were found in a folder; None for a missing file.
FolderCheck = tuple[tuple[int, int] | None, ...]


def check_claim(paths: RunPaths, *, settings: Mapping[str, Any], resumes: bool) -> FolderCheck:
    """Check that a run can have its folders, without writing.

    Args:
        paths: Folders of the run.
        settings: All its settings, as plain values.
        resumes: Whether the run in the folder is resumed.

    Returns:
        What was found there, to compare when the run begins.

    Raises:
        InputError: Another process trains there, a folder holds checkpoints of another run, or files that no run has
            written.
        OSError: A folder cannot be written to, or holds an earlier model with other files.
    """
    found = _stamps(paths.folder)
    if resumes:
        stored = read_settings_of(paths.folder)["paths"]["checkpoints"]
        _check_own_checkpoints(paths.folder, paths.checkpoints, before=stored)
        check_resumed(paths.folder)
        check_recorded(paths.checkpoints, chosen=settings["ckpt_path"])
    else:
        check_folder(paths.folder, overwrite=settings["overwrite"], ignored=STATE_FILES)
        _check_writable(paths.folder, paths.checkpoints, settings=settings)
    if owned_by_other_process(paths.folder):
        raise InputError(_trained_elsewhere(paths.folder))
    return found


def claim_folder(
    paths: RunPaths,
    *,
    settings: Mapping[str, Any],
    config: str | None,
    inputs: Inputs,
    ckpt_path: str | None,
    found: FolderCheck,
) -> list[filelock.BaseFileLock]:
    """Lock a run's folders, check them again, prepare them, and make the run that of this process. For rank 0.

    Args:
        paths: Folders of the run.
        settings: All its settings, as plain values.
        config: Its settings as YAML, for a new run; None for a resumed one.
        inputs: Its data, and the folders that it reads; those that it goes on with if it is resumed.
        ckpt_path: Checkpoint to return to.
        found: Result of :func:`check_claim`, before the run has loaded its data.

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
                with replacing_file(paths.folder / CONFIG) as new:
                    new.write_text(config, encoding="utf-8")
        _mark(paths.folder, paths.checkpoints)
        if ckpt_path is not None:
            _return_to(Path(ckpt_path), paths.folder, paths.checkpoints)
        if config is None:
            _note_moved(paths.folder, settings)
        write_inputs(paths.folder, inputs)
    except BaseException:
        for lock in locks:
            lock.release()
        raise
    enter_folder(paths.folder)
    return locks


def _note_moved(folder: Path, settings: Mapping[str, Any]) -> None:
    """Store the places from which a resumed run reads its data, model and teacher, where they have changed."""
    stored = read_settings_of(folder)
    before = dict(leaves(stored))
    moved = {name: str(path) for name, path in local_places(settings).items() if before.get(name) != str(path)}
    if moved:
        with replacing_file(folder / CONFIG) as new:
            new.write_text(OmegaConf.to_yaml(OmegaConf.create(with_values(stored, moved))), encoding="utf-8")


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


def _check_writable(folder: Path, checkpoints: Path, *, settings: Mapping[str, Any]) -> None:
    """Check that a new run replaces only files of an earlier run."""
    for names, is_right in ((RECORD_FILES, Path.is_file), (FOLDERS, Path.is_dir)):
        for path in (folder / name for name in names):
            if path.exists() and not is_right(path):
                raise InputError(f"{path} is {'a file' if path.is_file() else 'a folder'}; move or remove it.")
    if checkpoints == Path():
        raise InputError("paths.checkpoints is empty: give a folder, or leave it out.")
    if not is_inside(checkpoints, folder):
        check_folder(checkpoints, overwrite=True, name="paths.checkpoints")
    check_earlier(folder, checkpoints, settings=settings)


def _check_own_checkpoints(folder: Path, checkpoints: Path, *, before: str) -> None:
    """Check that the checkpoints of a resumed run are where its stored settings say, or inside its folder."""
    check_links(folder, checkpoints)
    if not is_inside(checkpoints, folder) and checkpoints.resolve() != Path(before).resolve():
        raise InputError(
            f"The run in {folder} has its checkpoints in {before}, and this command paths.checkpoints={checkpoints}: "
            "leave it unchanged, or move them into the run's folder."
        )
    owner = owner_of(checkpoints)
    if not is_inside(checkpoints, folder) and owner is not None and not owner.samefile(folder):
        raise InputError(
            f"paths.checkpoints={checkpoints} are those of the run in {owner}, of which {folder} is a copy: resume "
            f"that one, or copy them to {folder / CHECKPOINTS} and give paths.checkpoints={folder / CHECKPOINTS}."
        )


def _mark(folder: Path, checkpoints: Path) -> None:
    """Mark checkpoints outside a run's folder as its own, in both folders, with the present path of its folder."""
    if not is_inside(checkpoints, folder):
        mark = f"{uuid.uuid4().hex}\n{folder.resolve()}"
        for place in (folder, checkpoints):
            with replacing_file(place / OWNER_MARK) as new:
                new.write_text(mark, encoding="utf-8")


def _return_to(checkpoint: Path, folder: Path, checkpoints: Path) -> None:
    """Make a checkpoint the last one of a run: remove everything written after it."""
    phase = checkpoint.resolve().parent
    found = found_checkpoints(phase)
    if phase.parent != checkpoints.resolve() or phase.name not in list(Phase) or checkpoint.resolve() not in found:
        raise InputError(
            f"ckpt_path={checkpoint} is not a checkpoint of this run; checkpoints are "
            f"{checkpoints / 'PHASE' / 'step-N.ckpt'}."
        )
    wrong = why_unusable(checkpoint)
    if wrong is not None:
        raise InputError(f"ckpt_path={checkpoint} is damaged ({wrong}); resume=auto takes the last undamaged one.")
    if phase.name == Phase.TEACHER:
        check_teacher(folder, remedy="Move it away.")
    # It may be from a backup.
    note_checkpoint(checkpoint.resolve())
    for later in set(found[: found.index(checkpoint.resolve())]).intersection(recorded_checkpoints(phase)):
        remove_checkpoint(later)
    remove_phases(checkpoints, after=Phase(phase.name))
    if phase.name == Phase.TEACHER:
        remove_model(folder / TEACHER)
