"""The model that a command names by its folder, or by the run that made it."""

from pathlib import Path

from gating.errors import InputError
from gating.run.folder import is_run


def find_model(folder: str) -> tuple[Path | None, Path | None]:
    """Return the folder of a model, None if it is not a local one; and the folder of the run that made it, or None.

    Raises:
        InputError: The run has no model yet, or the folder is that of a sweep.
    """
    place = Path(folder).expanduser()
    if not place.is_dir():
        return None, None
    if is_run(place):
        if not (place / "compact").is_dir():
            raise InputError(f"The run in {folder} is not finished: {place}/compact does not exist.")
        return place / "compact", place
    if runs := sorted(path for path in place.glob("*") if is_run(path)):
        raise InputError(f"{folder} has {len(runs)} run(s): name one of them, such as {runs[0]}.")
    parent = place.resolve().parent
    return place, parent if is_run(parent) else None
