"""The model that a command names by its folder, or by the run that made it."""

from pathlib import Path

from gating.errors import InputError
from gating.run.folder import is_run
from gating.run.sweep.jobs import jobs_of

__all__ = ["find_model"]

_COMPACT = "compact"


def find_model(folder: str) -> tuple[Path | None, Path | None]:
    """Return the folder of a model, None if it is not a local one; and the folder of the run that made it, or None.

    Raises:
        InputError: The run has no model yet, or the folder is that of a sweep.
    """
    place = Path(folder).expanduser()
    if not place.is_dir():
        return None, None
    if is_run(place):
        if not (place / _COMPACT).is_dir():
            raise InputError(f"The run in {folder} is not finished: {place / _COMPACT} does not exist.")
        return place / _COMPACT, place
    if jobs := jobs_of(place):
        names = [job.folder for job in jobs if (place / job.folder / _COMPACT).is_dir()]
        raise InputError(f"{folder} is the folder of a sweep: name one of its finished jobs ({', '.join(names)}).")
    parent = place.resolve().parent
    return place, parent if is_run(parent) else None
