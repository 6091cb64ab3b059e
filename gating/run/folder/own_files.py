"""Files of a run: those that it has recorded, those in their place that it has not written, and links out of them."""

import os
import shutil
from collections.abc import Collection
from pathlib import Path

from gating.errors import InputError
from gating.loader.checksums import digest_table
from gating.run.folder.contents import COMPACT, EXPORTS, FILES, MODELS, RECIPE, STATE_FILES, TEACHER, Phase
from gating.serving.exporting import EXPORT
from gating.storage import results
from gating.storage.folders import is_inside
from gating.storage.results import COMPACT_MODEL, RECORD_FILE, check_result, find_foreign
from gating.storage.tables import read_table
from gating.storage.written import note_written, written_in

__all__ = ["check_compact", "check_links", "check_teacher", "check_written", "note_models", "remove_model"]

# A line of the record between the name of a model and the checksum of its content.
_MARK = " sha256="


def check_written(folder: Path, written: Collection[str], consequence: str, *, remedy: str) -> None:
    """Raise ``InputError`` if the place of a file or model of a run holds one that its record does not name."""
    for name in (*FILES, *MODELS):
        if name not in written and _is_used(folder / name):
            raise InputError(f"{folder / name} was not written by a run, and {consequence}. {remedy}")


def check_compact(folder: Path, *, remedy: str) -> None:
    """Check that the compact model of a run, its recipe and its exports are as the run has written them.

    Raises:
        FolderExistsError: A folder holds anything else.
        InputError: It holds another model.
    """
    exports = [(name, EXPORT) for name in EXPORTS.values()]
    for name, kind in ((COMPACT, COMPACT_MODEL), (RECIPE, results.RECIPE), *exports):
        if _is_used(folder / name):
            check_result(folder / name, kind=kind)
            _check_mark(folder, name, remedy=remedy)


def check_teacher(folder: Path, *, remedy: str) -> None:
    """Raise ``InputError`` if the teacher in a run's folder is not as the run has written it."""
    if not _is_used(folder / TEACHER):
        return
    if (foreign := find_foreign(folder / TEACHER)) is not None:
        raise InputError(f"{folder / TEACHER / foreign} was not written by a run. {remedy}")
    _check_mark(folder, TEACHER, remedy=remedy)


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


def note_models(folder: Path) -> None:
    """Record which models a run has written: another one in their place is not the run's."""
    own = (written_in(folder) or frozenset()).intersection(MODELS)
    note_written(folder, *(_mark(folder / name) for name in own if (folder / name).is_dir()))


def remove_model(folder: Path) -> None:
    """Remove a saved model; if its folder is a link, the link only."""
    if folder.is_symlink():
        folder.unlink()
    else:
        shutil.rmtree(folder, ignore_errors=True)


def _check_mark(folder: Path, name: str, *, remedy: str) -> None:
    """Raise ``InputError`` if a model is none of those that a run has recorded; it may have recorded none yet."""
    marks = {line for line in written_in(folder) or () if line.startswith(f"{name}{_MARK}")}
    if marks and _mark(folder / name) not in marks:
        raise InputError(f"{folder / name} is another model than the one that a run has written there. {remedy}")


def _mark(model: Path) -> str:
    # The file has the checksums of all others.
    return f"{model.name}{_MARK}{digest_table(read_table(model / RECORD_FILE))}"


def _is_used(path: Path) -> bool:
    return any(path.iterdir()) if path.is_dir() else os.path.lexists(path)
