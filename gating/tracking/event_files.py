"""TensorBoard's event files of a run."""

from fnmatch import fnmatchcase
from pathlib import Path

from gating.storage.folders import is_inside
from gating.storage.written import written_in
from gating.tracking.contents import EVENT_FILES, TENSORBOARD

__all__ = ["find_event_files"]


def find_event_files(run: Path) -> list[Path]:
    """Return the event files of a run by the patterns of names in its record; others may lie beside them.

    Args:
        run: The run's folder.
    """
    patterns, folder = written_in(run) or (), run / TENSORBOARD
    # A link may lead to the events of other runs.
    found = [path for path in folder.glob(EVENT_FILES) if is_inside(path, run) and not path.is_symlink()]
    return sorted(path for path in found if any(fnmatchcase(f"{TENSORBOARD}/{path.name}", one) for one in patterns))
