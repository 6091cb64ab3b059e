"""Checkpoints of a run in the folders of its phases: whose they are, their removal, and the disk space of it."""

import uuid
from collections.abc import Iterable
from contextlib import nullcontext, suppress
from pathlib import Path

from gating.errors import InputError
from gating.run.folder.contents import CHECKPOINTS, CLEARED, CONFIG, METRICS, OWNER_MARK, TEACHER, Phase, RunPaths
from gating.run.folder.state import holding, is_finished, owned_by_other_process
from gating.run.folder.stored_settings import read_settings_of, stored_checkpoint_folder
from gating.storage.atomic import write_atomically
from gating.storage.folders import is_inside
from gating.storage.written import WRITTEN, written_in
from gating.training.checkpoints import found_checkpoints, noted_checkpoints, remove_checkpoint

__all__ = [
    "checkpoint_folder",
    "end_checkpoints",
    "free_space",
    "has_checkpoint",
    "has_own_checkpoints",
    "mark_owner",
    "megabytes",
    "owner_of",
    "remove_noted",
]


def checkpoint_folder(folder: Path) -> Path:
    """Return the folder of a run's checkpoints by its stored settings; the default one if they are damaged."""
    for name in (CONFIG, CLEARED):
        with suppress(ValueError):
            return stored_checkpoint_folder(folder, read_settings_of(folder, name=name))
    return folder / CHECKPOINTS


def has_checkpoint(folder: Path) -> bool:
    """Return whether a run has a checkpoint or a teacher to resume from."""
    places = {folder / CHECKPOINTS, checkpoint_folder(folder)}
    return (folder / TEACHER).is_dir() or any(found_checkpoints(place / phase) for place in places for phase in Phase)


def has_own_checkpoints(folder: Path, checkpoints: Path) -> bool:
    """Return whether checkpoints are inside a run's folder, or have the same owner mark as the folder.

    A copy of a run has its mark, too, but those outside its folder are the original's.
    """
    if is_inside(checkpoints, folder):
        return True
    owner = owner_of(checkpoints)
    return _have_same_mark(folder, checkpoints) and (owner is None or owner.samefile(folder))


def owner_of(checkpoints: Path) -> Path | None:
    """Return the folder of the run that owns checkpoints outside of it; None if it is not known or was moved."""
    with suppress(OSError, ValueError):
        _, _, path = (checkpoints / OWNER_MARK).read_text(encoding="utf-8").partition("\n")
        return Path(path) if path and _have_same_mark(Path(path), checkpoints) else None
    return None


def _have_same_mark(folder: Path, checkpoints: Path) -> bool:
    with suppress(OSError, ValueError):
        mark = (folder / OWNER_MARK).read_text(encoding="utf-8")
        return bool(mark) and mark == (checkpoints / OWNER_MARK).read_text(encoding="utf-8")
    return False


def mark_owner(folder: Path, checkpoints: Path) -> None:
    """Mark checkpoints outside a run's folder as its own, in both folders, with the present path of its folder."""
    if not is_inside(checkpoints, folder):
        mark = f"{uuid.uuid4().hex}\n{folder.resolve()}"
        for place in (folder, checkpoints):
            write_atomically(place / OWNER_MARK, mark)


def remove_noted(checkpoints: Path, *, after: Phase | None = None) -> None:
    """Remove the checkpoints that a run has recorded as its own, or those of its phases after one; other files stay."""
    phases = list(Phase)
    for phase in phases[0 if after is None else phases.index(after) + 1 :]:
        place = checkpoints / phase
        if is_inside(place, checkpoints):
            for path in noted_checkpoints(place):
                remove_checkpoint(path)
            (place / WRITTEN).unlink(missing_ok=True)
            with suppress(OSError):
                place.rmdir()
    with suppress(OSError):
        checkpoints.rmdir()


def _noted_in(checkpoints: Path) -> list[Path]:
    """Return the checkpoints of all phases that a run has recorded as its own; none behind a link out of the folder."""
    phases = [checkpoints / phase for phase in Phase if is_inside(checkpoints / phase, checkpoints)]
    return [path for phase in phases for path in noted_checkpoints(phase)]


def end_checkpoints(paths: RunPaths, *, keep: bool) -> str:
    """Remove the checkpoints of a run that has finished, and return a sentence on the space that it takes."""
    freed = _size_of(_noted_in(paths.checkpoints))
    problem = ""
    try:
        if not keep:
            remove_noted(paths.checkpoints)
    except OSError as error:  # The run is finished nonetheless.
        problem = f" that could not be removed ({error.strerror})"
    left = _size_of(_noted_in(paths.checkpoints))
    whole = _size_of([paths.folder]) + (0 if is_inside(paths.checkpoints, paths.folder) else left)
    said = f"The run takes {megabytes(whole)}"
    if left:
        return f"{said}, {megabytes(left)} of them checkpoints{problem}: head-gating clean {paths.folder} removes them."
    if freed:
        said += f" without its checkpoints of {megabytes(freed)}, which were removed; keep_checkpoints=true keeps them"
    return f"{said}."


def free_space(folder: Path, *, dry_run: bool) -> tuple[int, str]:
    """Remove the checkpoints of a run that has finished, and return their size in bytes and a sentence.

    Those of other runs stay.

    Raises:
        InputError: Another process trains the run.
    """
    problem = f"{folder} is in use by another process, so its checkpoints stay."
    if dry_run and owned_by_other_process(folder):
        raise InputError(problem)
    with nullcontext() if dry_run else holding(folder, problem=problem):
        # Results of another program do not make a run a finished one.
        if not (is_finished(folder) and METRICS in (written_in(folder) or ())):
            return 0, f"{folder}: not finished, so its checkpoints stay; resume it with python train.py resume={folder}"
        place = checkpoint_folder(folder)
        if not has_own_checkpoints(folder, place):
            return 0, f"{folder}: its checkpoints are in {place}, which may be those of another run, so they stay."
        noted = _noted_in(place)
        others = {path for phase in Phase for path in found_checkpoints(place / phase)}.difference(noted)
        size = _size_of(noted)
        if not dry_run:
            remove_noted(place)
    kept = f"; {len(others)} others that the run has not recorded stay in {place}" if others else ""
    return size, f"{folder}: {len(noted)} checkpoint(s), {megabytes(size)}{kept}"


def _size_of(paths: Iterable[Path]) -> int:
    """Return the size of files and folders in bytes; links are not followed."""
    total = 0
    for path in paths:
        for one in path.rglob("*") if path.is_dir() and not path.is_symlink() else [path]:
            with suppress(FileNotFoundError):  # Loggers may still write to the folder.
                total += one.lstat().st_size if one.is_symlink() or one.is_file() else 0
    return total


def megabytes(size: int) -> str:
    """Return a size as megabytes.

    >>> megabytes(1234567890)
    '1,234.6 MB'
    """
    return f"{size / 1e6:,.1f} MB"
