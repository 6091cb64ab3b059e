"""Whether a run's folder can be written to."""

import shutil
import tempfile
from pathlib import Path

__all__ = ["check_folder", "clear_folder"]


def check_folder(folder: Path, *, overwrite: bool) -> None:
    """Make sure that a folder can be created and written to, and leave no trace.

    Args:
        folder: The folder of a run.
        overwrite: Whether it may hold something already.

    Raises:
        FileExistsError: It holds something and ``overwrite`` is false, or a part of its path is a file.
        PermissionError: It cannot be written to.
    """
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise FileExistsError(
            f"output_dir={folder} holds something already. Choose another folder, or pass overwrite=true."
        )
    parent = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not parent.is_dir():
        raise FileExistsError(f"output_dir={folder} cannot be a folder: {parent} is a file. Choose another place.")
    try:
        Path(tempfile.mkdtemp(prefix=".head-gating-", dir=parent)).rmdir()
    except OSError as error:
        raise PermissionError(
            f"output_dir={folder} cannot be written to ({error.strerror} in {parent}). Choose another place."
        ) from error


def clear_folder(folder: Path) -> None:
    """Remove what an earlier run left in a folder, so that two runs do not mix; other files stay.

    Args:
        folder: A folder that may be overwritten. If it is not that of a run, which the settings in it would tell,
            nothing is removed.
    """
    settings = folder / "config.yaml"
    if not (settings.is_file() and "_target_: gating." in settings.read_text(encoding="utf-8", errors="replace")):
        return
    for name in ("checkpoints", "compact", "csv", "report", "teacher"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in ("config.yaml", "metrics.json"):
        (folder / name).unlink(missing_ok=True)
