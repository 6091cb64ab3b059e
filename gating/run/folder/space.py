"""Disk space of finished runs, which need no checkpoints."""

from collections.abc import Iterable
from contextlib import nullcontext, suppress
from pathlib import Path

from gating.errors import InputError
from gating.run.folder.checkpoints import checkpoint_folder, noted_in, remove_noted
from gating.run.folder.contents import METRICS, Phase, RunPaths
from gating.run.folder.state import has_own_checkpoints, holding, is_finished, owned_by_other_process
from gating.storage.folders import is_inside
from gating.storage.written import written_in
from gating.training.checkpoints import found_checkpoints

__all__ = ["end_checkpoints", "free_space", "megabytes", "size_of"]


def end_checkpoints(paths: RunPaths, *, keep: bool) -> str:
    """Remove the checkpoints of a run that has finished, and return a sentence on the space that it takes."""
    freed = size_of(noted_in(paths.checkpoints))
    problem = "" if keep else _remove(paths.checkpoints)
    left = size_of(noted_in(paths.checkpoints))
    whole = size_of([paths.folder]) + (0 if is_inside(paths.checkpoints, paths.folder) else left)
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
        noted = noted_in(place)
        others = {path for phase in Phase for path in found_checkpoints(place / phase)}.difference(noted)
        size = size_of(noted)
        if not dry_run:
            remove_noted(place)
    kept = f"; {len(others)} others that the run has not recorded stay in {place}" if others else ""
    return size, f"{folder}: {len(noted)} checkpoint(s), {megabytes(size)}{kept}"


def _remove(checkpoints: Path) -> str:
    """Remove checkpoints, and return the part of a sentence on a failure: the run is finished nonetheless."""
    try:
        remove_noted(checkpoints)
    except OSError as error:
        return f" that could not be removed ({error.strerror})"
    return ""


def size_of(paths: Iterable[Path]) -> int:
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
