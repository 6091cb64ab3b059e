"""Files of an earlier run in the folder of a new one; other files stay."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from gating.errors import InputError
from gating.run.folder.checkpoints import checkpoint_folder, remove_noted
from gating.run.folder.contents import (
    CHECKPOINTS,
    CLEARED,
    CONFIG,
    FOLDERS,
    METRICS,
    MODELS,
    OTHER_FILES,
    RECORD_FILES,
    REPLACED_FOLDERS,
    STATE_FILES,
    TENSORBOARD,
    Phase,
    RunPaths,
)
from gating.run.folder.own_files import check_compact, check_links, check_teacher, check_written, remove_model
from gating.storage.folders import check_folder, is_inside, is_or_holds
from gating.storage.same_settings import leaves
from gating.storage.written import written_in
from gating.training.checkpoints import found_checkpoints, noted_checkpoints

__all__ = ["check_new", "clearing"]

_ELSEWHERE = "Move it away, or choose another output_dir."


def check_new(paths: RunPaths, *, settings: Mapping[str, Any]) -> None:
    """Check that a new run can write to its folders, and replaces nothing there but an earlier run.

    Raises:
        InputError: A file in the new run's place was not written by a run, or the new run reads it.
        FolderExistsError: A model folder of the earlier run holds other files.
        OSError: A folder cannot be written to, or holds files and is not to be overwritten.
    """
    folder, checkpoints = paths.folder, paths.checkpoints
    check_folder(folder, overwrite=settings["overwrite"], ignored=STATE_FILES)
    for names, is_right in ((RECORD_FILES, Path.is_file), (FOLDERS, Path.is_dir)):
        for path in (folder / name for name in names):
            if path.exists() and not is_right(path):
                raise InputError(f"{path} is {'a file' if path.is_file() else 'a folder'}; move or remove it.")
    if checkpoints == Path():
        raise InputError("paths.checkpoints is empty: give a folder, or leave it out.")
    if not is_inside(checkpoints, folder):
        check_folder(checkpoints, overwrite=True, name="paths.checkpoints")
    written = written_in(folder)
    check_written(folder, written or (), "a new run would overwrite it", remedy=_ELSEWHERE)
    if written is not None:
        check_compact(folder, remedy=_ELSEWHERE)
        check_teacher(folder, remedy=_ELSEWHERE)
        _check_sources(folder, settings)
    own = [folder / CHECKPOINTS, *([checkpoint_folder(folder)] if written is not None else [])]
    for place in (checkpoints, folder / CHECKPOINTS):
        check_links(folder, place)
    is_own = written is not None and checkpoints.resolve() in [place.resolve() for place in own]
    _check_foreign(checkpoints, may_be_noted=is_own and is_inside(checkpoints, folder))


def _check_sources(folder: Path, settings: Mapping[str, Any]) -> None:
    places = [folder / name for name in (*REPLACED_FOLDERS, *MODELS)]
    for name, value in leaves({group: settings[group] for group in ("model", "data", "distillation", "task")}):
        with suppress(OSError):  # A value may be too long for a path.
            if isinstance(value, str) and value and "\0" not in value:
                source = Path(os.path.expanduser(value))
                if any(is_or_holds(place, source) for place in places):
                    raise InputError(f"{name}={value} is in the run that this one replaces. Choose another output_dir.")


def _check_foreign(checkpoints: Path, *, may_be_noted: bool) -> None:
    """Raise ``InputError`` if a folder holds a checkpoint that is not recorded as one of the earlier run."""
    # Resolved, because the path may lead through the run's folder, which does not exist yet.
    for phase in (checkpoints.resolve() / phase for phase in Phase):
        own = noted_checkpoints(phase) if may_be_noted else []
        for path in (path for path in found_checkpoints(phase) if path not in own):
            raise InputError(
                f"paths.checkpoints={checkpoints} holds a checkpoint of another run, {path}. Choose another folder "
                "for this run, or remove the checkpoint."
            )


@contextmanager
def clearing(folder: Path, checkpoints: Path) -> Iterator[None]:
    """Remove the files of an earlier run, before a ``with`` block that begins a new one.

    Nothing is removed from a folder that is not a run's.
    """
    written = written_in(folder)
    if written is not None:
        # First: a run with metrics counts as finished, and one with settings as one to resume.
        (folder / METRICS).unlink(missing_ok=True)
        if (folder / CONFIG).is_file():
            (folder / CONFIG).replace(folder / CLEARED)
        for place in {folder / CHECKPOINTS, checkpoint_folder(folder)}:
            if is_inside(place, folder):
                remove_noted(place)
        for name in written.intersection(MODELS):
            remove_model(folder / name)
        for path in (
            *(folder / name for name in written.intersection(OTHER_FILES)),
            *(folder / TENSORBOARD).glob("events.out.tfevents.*"),
        ):
            if is_inside(path, folder):
                path.unlink(missing_ok=True)
        for place in (folder / name for name in REPLACED_FOLDERS):
            with suppress(OSError):
                place.rmdir()
    # check_new refuses a folder with checkpoints of another run.
    remove_noted(checkpoints)
    yield
    (folder / CLEARED).unlink(missing_ok=True)
