"""Checkpoints of a run in the folders of its phases, and their removal."""

from contextlib import suppress
from pathlib import Path

from gating.errors import InputError
from gating.run.folder.contents import CHECKPOINTS, CLEARED, CONFIG, TEACHER, Phase
from gating.run.folder.stored_settings import read_settings_of, stored_checkpoint_folder
from gating.storage.folders import is_inside
from gating.storage.written import WRITTEN
from gating.training.checkpoints import found_checkpoints, noted_checkpoints, recorded_checkpoints, remove_checkpoint

__all__ = [
    "check_recorded",
    "checkpoint_folder",
    "has_checkpoint",
    "noted_in",
    "remove_noted",
    "remove_phases",
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


def noted_in(checkpoints: Path) -> list[Path]:
    """Return the checkpoints of all phases that a run has recorded as its own; none behind a link out of the folder."""
    phases = [checkpoints / phase for phase in Phase if is_inside(checkpoints / phase, checkpoints)]
    return [path for phase in phases for path in noted_checkpoints(phase)]


def remove_noted(checkpoints: Path) -> None:
    """Remove the checkpoints that a run has recorded as its own; other files stay."""
    for path in noted_in(checkpoints):
        remove_checkpoint(path)
    for phase in (checkpoints / phase for phase in Phase if is_inside(checkpoints / phase, checkpoints)):
        (phase / WRITTEN).unlink(missing_ok=True)
        with suppress(OSError):
            phase.rmdir()
    with suppress(OSError):
        checkpoints.rmdir()


def remove_phases(checkpoints: Path, *, after: Phase) -> None:
    """Remove the checkpoints of the phases after a phase, from which a run would resume; other files stay."""
    phases = list(Phase)
    for phase in phases[phases.index(after) + 1 :]:
        for path in noted_checkpoints(checkpoints / phase):
            remove_checkpoint(path)
        with suppress(OSError):
            (checkpoints / phase).rmdir()


def check_recorded(checkpoints: Path, *, chosen: str | None) -> None:
    """Check that all checkpoints in the folders of a resumed run are its own.

    Args:
        checkpoints: Folder of the run's checkpoints.
        chosen: One that the run is to go on from, although it may have forgotten it; such as one of a backup.

    Raises:
        InputError: The run has not recorded one of the others.
    """
    known = {Path(chosen).resolve()} if chosen else set()
    for phase in (checkpoints / phase for phase in Phase):
        own = recorded_checkpoints(phase)
        for path in (path for path in found_checkpoints(phase) if path not in own and path.resolve() not in known):
            raise InputError(
                f"{path} is not recorded as a checkpoint of this run, which might replace it: move it away. If the run "
                f"has written it, go on from it with ckpt_path={path}"
            )
