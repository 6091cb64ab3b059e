"""Files of an earlier run in the folder of a new one; other files stay."""

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from gating.errors import InputError
from gating.run.folder.contents import (
    CHECKPOINTS,
    CLEARED,
    COMPACT,
    CONFIG,
    FILES,
    LOCK,
    METRICS,
    MODELS,
    OTHER_FILES,
    REPLACED_FOLDERS,
    TEACHER,
    Phase,
)
from gating.run.folder.stored_settings import checkpoints_of, leaves, read_settings_of
from gating.storage.folders import is_or_holds
from gating.storage.results import COMPACT_MODEL, check_result, find_foreign
from gating.tracking.contents import EVENT_FILES, TENSORBOARD
from gating.training.checkpoints import checkpoints_in, remove_checkpoint, why_unusable

__all__ = ["check_earlier", "check_links", "clearing", "remove_model", "remove_phases", "has_checkpoint"]

# In addition to the groups of every run.
_KEYS = {"output_dir", "overwrite", "resume", "ckpt_path", "seed", "recovery", "phase"}


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
    earlier = _settings_of_earlier(folder)
    if earlier is None:
        _check_unused(folder)
    else:
        if _is_used(folder / COMPACT):
            check_result(folder / COMPACT, kind=COMPACT_MODEL)
        is_own = _has_teacher(folder, earlier)
        if _is_used(folder / TEACHER) and (foreign := find_foreign(folder / TEACHER) if is_own else "") is not None:
            raise InputError(
                f"{folder / TEACHER / foreign} was not written by a run. Move it away, or choose another output_dir."
            )
        _check_sources(folder, settings)
    for place in (checkpoints, folder / CHECKPOINTS):
        check_links(folder, place)
    own = [folder / CHECKPOINTS, *([checkpoints_of(folder, earlier)] if earlier else [])]
    is_own = earlier is not None and checkpoints.resolve() in [place.resolve() for place in own]
    if not (is_own and _is_inside(checkpoints, folder)):
        _check_empty(checkpoints)


def _check_unused(folder: Path) -> None:
    for name in (*FILES, *MODELS):
        if _is_used(folder / name):
            raise InputError(
                f"{folder / name} was not written by a run, and a new run would overwrite it. Move it away, or choose "
                "another output_dir."
            )


def _is_used(path: Path) -> bool:
    return any(path.iterdir()) if path.is_dir() else os.path.lexists(path)


def _check_sources(folder: Path, settings: Mapping[str, Any]) -> None:
    places = [folder / name for name in (*REPLACED_FOLDERS, *MODELS)]
    for name, value in leaves({group: settings[group] for group in ("model", "data", "distillation")}):
        with suppress(OSError):  # Such as a value too long for a path.
            if isinstance(value, str) and value and "\0" not in value:
                source = Path(os.path.expanduser(value))
                if any(is_or_holds(place, source) for place in places):
                    raise InputError(f"{name}={value} is in the run that this one replaces. Choose another output_dir.")


def _check_empty(checkpoints: Path) -> None:
    # Resolved, because the path may lead through the run's folder, which does not exist yet.
    for path in (path for phase in Phase for path in checkpoints_in(checkpoints.resolve() / phase)):
        raise InputError(
            f"paths.checkpoints={checkpoints} holds a checkpoint of another run, {path}. Choose another folder "
            "for this run, or remove the checkpoint."
        )


def check_links(folder: Path, checkpoints: Path) -> None:
    """Check that a run reads and writes only its own files.

    Args:
        folder: The run's folder.
        checkpoints: Folder of its checkpoints.

    Raises:
        InputError: A file, or a folder above it, is a link out of the run's folder.
    """
    files = [(folder / name, folder) for name in (*FILES, LOCK)]
    for path, place in (*files, *((checkpoints / phase, checkpoints) for phase in Phase)):
        if not _is_inside(path, place):
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
    settings = folder / CONFIG
    if (earlier := _settings_of_earlier(folder)) is not None:
        models = [name for name in MODELS if name != TEACHER or _has_teacher(folder, earlier)]
        # First: a run with metrics counts as finished.
        (folder / METRICS).unlink(missing_ok=True)
        if settings.is_file():
            settings.replace(folder / CLEARED)
        if _is_inside(folder / CHECKPOINTS, folder):
            remove_phases(folder / CHECKPOINTS, after=None)
        for name in models:
            remove_model(folder / name)
        for path in (*(folder / name for name in OTHER_FILES), *(folder / TENSORBOARD).glob(EVENT_FILES)):
            if _is_inside(path, folder):
                path.unlink(missing_ok=True)
        for place in (folder / name for name in REPLACED_FOLDERS):
            with suppress(OSError):
                place.rmdir()
    # check_earlier refuses a folder with checkpoints of another run.
    remove_phases(checkpoints, after=None)
    yield
    (folder / CLEARED).unlink(missing_ok=True)


def remove_model(folder: Path) -> None:
    """Remove a saved model; if its folder is a link, the link only."""
    if folder.is_symlink():
        folder.unlink()
    else:
        shutil.rmtree(folder, ignore_errors=True)


def remove_phases(checkpoints: Path, *, after: Phase | None) -> None:
    """Remove the checkpoints of the phases after a phase, or of all phases; other files stay."""
    phases = list(Phase)
    for phase in phases[phases.index(after) + 1 if after else 0 :]:
        for path in (*checkpoints_in(checkpoints / phase), *(checkpoints / phase).glob(".step-*.ckpt*.new")):
            remove_checkpoint(path)
        with suppress(OSError):
            (checkpoints / phase).rmdir()


def has_checkpoint(folder: Path) -> bool:
    """Return whether a run has a checkpoint or a teacher to resume from."""
    places = [folder / CHECKPOINTS]
    with suppress(ValueError):
        places.append(checkpoints_of(folder, read_settings_of(folder)))
    return (folder / TEACHER).is_dir() or any(checkpoints_in(place / phase) for place in places for phase in Phase)


def _settings_of_earlier(folder: Path) -> dict[str, Any] | None:
    """Return a run's settings; only ``paths`` if nothing but its checkpoints is left; None without a run."""
    for name in (CONFIG, CLEARED):
        with suppress(ValueError):
            settings = read_settings_of(folder, name=name)
            if settings.keys() >= _KEYS:
                return settings
    found = (path for phase in Phase for path in checkpoints_in(folder / CHECKPOINTS / phase))
    return (
        {"paths": {"checkpoints": str(folder / CHECKPOINTS)}}
        if any(why_unusable(path) is None for path in found)
        else None
    )


def _has_teacher(folder: Path, settings: Mapping[str, Any]) -> bool:
    """Return whether a run trains its own teacher, by its settings or, if they are damaged, its checkpoints."""
    distillation = settings.get("distillation", {})
    trains_one = isinstance(distillation, Mapping) and bool(distillation) and not distillation.get("teacher")
    return trains_one or bool(checkpoints_in(folder / CHECKPOINTS / Phase.TEACHER))


def _is_inside(path: Path, folder: Path) -> bool:
    """Return whether a path is inside a folder after links are resolved."""
    return path.resolve().is_relative_to(folder.resolve())
