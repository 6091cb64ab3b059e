"""The model that a command names by its folder, or by the run that made it."""

from pathlib import Path

from gating.errors import InputError
from gating.run.folder import is_run
from gating.run.folder.contents import COMPACT, MODELS
from gating.run.sweep.records import Job, jobs_of, recommended_job

__all__ = ["find_model"]


def find_model(folder: str) -> tuple[Path | None, Path | None]:
    """Return the folder of a model, None if it is not a local one; and the folder of the run that made it, or None.

    Raises:
        InputError: The run has no model yet, or the folder is that of a sweep.
    """
    place = Path(folder).expanduser()
    if not place.is_dir():
        return None, None
    if is_run(place):
        if not (place / COMPACT).is_dir():
            raise InputError(f"The run in {folder} is not finished: {place / COMPACT} does not exist.")
        return place / COMPACT, place
    if jobs := jobs_of(place):
        raise InputError(f"{folder} is the folder of a sweep, {_choice(place, jobs)}")
    parent = place.resolve().parent
    return place, parent if place.resolve().name in MODELS and is_run(parent) else None


def _choice(sweep: Path, jobs: list[Job]) -> str:
    """Return the end of a sentence on a sweep: its jobs with a model, and the one to take."""
    names = [job.folder for job in jobs if (sweep / job.folder / COMPACT).is_dir()]
    if not names:
        return "and none of its jobs is finished."
    best = recommended_job(sweep)
    example = f"the recommended {sweep / best}" if best in names else f"{sweep / names[-1]}"
    return f"with the finished jobs {', '.join(names)}: name one of them, such as {example}."
