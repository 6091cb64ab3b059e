"""Files of an earlier run in the folder of a new one; other files stay."""

import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from gating.errors import InputError
from gating.loader.integrity import digest_table
from gating.run.folder.checkpoints import checkpoint_folder, remove_noted
from gating.run.folder.contents import (
    CHECKPOINTS,
    CLEARED,
    COMPACT,
    CONFIG,
    FILES,
    METRICS,
    MODELS,
    OTHER_FILES,
    REPLACED_FOLDERS,
    STATE_FILES,
    TEACHER,
    Phase,
)
from gating.storage.folders import is_inside, is_or_holds
from gating.storage.results import COMPACT_MODEL, RECORD_FILE, check_result, find_foreign
from gating.storage.same_settings import leaves
from gating.storage.tables import read_table
from gating.storage.written import WRITTEN, note_written, written_in
from gating.tracking.tensorboard_log import find_event_files
from gating.training.checkpoints import found_checkpoints, noted_checkpoints

__all__ = ["check_earlier", "check_links", "check_resumed", "check_teacher", "clearing", "note_models", "remove_model"]

_ELSEWHERE = "Move it away, or choose another output_dir."


def check_earlier(folder: Path, checkpoints: Path, *, settings: Mapping[str, Any]) -> None:
    """Check that a new run replaces nothing but an earlier run.

    Args:
        folder: The folder of the new run.
        checkpoints: Folder of its checkpoints.
        settings: All settings of the new run, as plain values.

    Raises:
        InputError: A file in the new run's place was not written by a run, or the new run reads it.
        FolderExistsError: A model folder of the earlier run holds other files.
    """
    written = written_in(folder)
    _check_written(folder, written or (), "a new run would overwrite it", remedy=_ELSEWHERE)
    if written is not None:
        _check_compact(folder, remedy=_ELSEWHERE)
        check_teacher(folder, remedy=_ELSEWHERE)
        _check_sources(folder, settings)
    own = [folder / CHECKPOINTS, *([checkpoint_folder(folder)] if written is not None else [])]
    for place in (checkpoints, folder / CHECKPOINTS):
        check_links(folder, place)
    is_own = written is not None and checkpoints.resolve() in [place.resolve() for place in own]
    _check_foreign(checkpoints, may_be_noted=is_own and is_inside(checkpoints, folder))


def check_resumed(folder: Path) -> None:
    """Check that a resumed run would replace only files and models that it has recorded.

    Raises:
        InputError: A file or model in the place of one of the run's was not written by it, or there is no record.
        FolderExistsError: The folder of its compact model holds other files.
    """
    written = written_in(folder)
    if written is None:
        raise InputError(
            f"{folder / WRITTEN} is missing, the record of the files that the run has written: restore it, or begin "
            "another run in another output_dir."
        )
    _check_written(folder, written, "the run would overwrite it", remedy="Move it away.")
    _check_compact(folder, remedy="Move it away.")


def check_teacher(folder: Path, *, remedy: str) -> None:
    """Raise ``InputError`` if the teacher in a run's folder is not as the run has written it."""
    if not _is_used(folder / TEACHER):
        return
    if (foreign := find_foreign(folder / TEACHER)) is not None:
        raise InputError(f"{folder / TEACHER / foreign} was not written by a run. {remedy}")
    _check_mark(folder, TEACHER, remedy=remedy)


def note_models(folder: Path) -> None:
    """Record which models a run has written: another one in their place is not the run's."""
    own = (written_in(folder) or frozenset()).intersection(MODELS)
    note_written(folder, *(_mark(folder / name) for name in own if (folder / name).is_dir()))


def _check_compact(folder: Path, *, remedy: str) -> None:
    if _is_used(folder / COMPACT):
        check_result(folder / COMPACT, kind=COMPACT_MODEL)
        _check_mark(folder, COMPACT, remedy=remedy)


def _check_mark(folder: Path, name: str, *, remedy: str) -> None:
    """Raise ``InputError`` if a model is none of those that a run has recorded; it may have recorded none yet."""
    marks = {line for line in written_in(folder) or () if line.startswith(_start_of_mark(name))}
    if marks and _mark(folder / name) not in marks:
        raise InputError(f"{folder / name} is another model than the one that a run has written there. {remedy}")


def _mark(model: Path) -> str:
    # The file has the checksums of all others.
    return f"{_start_of_mark(model.name)}{digest_table(read_table(model / RECORD_FILE))}"


def _start_of_mark(name: str) -> str:
    return f"{name} sha256="


def _check_written(folder: Path, written: Collection[str], consequence: str, *, remedy: str) -> None:
    """Raise ``InputError`` if the place of a file or model of a run holds one that its record does not name."""
    for name in (*FILES, *MODELS):
        if name not in written and _is_used(folder / name):
            raise InputError(f"{folder / name} was not written by a run, and {consequence}. {remedy}")


def _is_used(path: Path) -> bool:
    return any(path.iterdir()) if path.is_dir() else os.path.lexists(path)


def _check_sources(folder: Path, settings: Mapping[str, Any]) -> None:
    places = [folder / name for name in (*REPLACED_FOLDERS, *MODELS)]
    for name, value in leaves({group: settings[group] for group in ("model", "data", "distillation")}):
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


def check_links(folder: Path, checkpoints: Path) -> None:
    """Check that a run reads and writes only its own files.

    Raises:
        InputError: A file, or a folder above it, is a link out of the run's folder.
    """
    files = [(folder / name, folder) for name in (*FILES, *STATE_FILES)]
    for path, place in (*files, *((checkpoints / phase, checkpoints) for phase in Phase)):
        if not is_inside(path, place):
            raise InputError(
                f"{path} is a link to {path.resolve()} outside the run's folder: replace it by a copy, or remove it."
            )


@contextmanager
def clearing(folder: Path, checkpoints: Path) -> Iterator[None]:
    """Remove the files of an earlier run, before a ``with`` block that begins a new one.

    Args:
        folder: A folder that may be overwritten. Nothing is removed unless it is a run's.
        checkpoints: Folder of the new run's checkpoints.
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
        for path in (*(folder / name for name in written.intersection(OTHER_FILES)), *find_event_files(folder)):
            if is_inside(path, folder):
                path.unlink(missing_ok=True)
        for place in (folder / name for name in REPLACED_FOLDERS):
            with suppress(OSError):
                place.rmdir()
    # check_earlier refuses a folder with checkpoints of another run.
    remove_noted(checkpoints)
    yield
    (folder / CLEARED).unlink(missing_ok=True)


def remove_model(folder: Path) -> None:
    """Remove a saved model; if its folder is a link, the link only."""
    if folder.is_symlink():
        folder.unlink()
    else:
        shutil.rmtree(folder, ignore_errors=True)
