"""Names of the checkpoints of a phase in its folder, ``step-N.ckpt``: files, or folders of a sharded model."""

import re
import shutil
from pathlib import Path

__all__ = ["checkpoint_path", "found_checkpoints", "remove_checkpoint", "unfinished_checkpoints"]

_NAME = re.compile(r"step-(\d+)\.ckpt")


def checkpoint_path(folder: Path, step: int) -> Path:
    """Return the path of the checkpoint after ``step`` optimizer steps of the run."""
    return folder / f"step-{step}.ckpt"


def found_checkpoints(folder: Path) -> list[Path]:
    """Return the paths in a phase's folder that have the names of checkpoints, the latest first."""
    named = {path: _NAME.fullmatch(path.name) for path in folder.glob("step-*.ckpt")}
    steps = {path: int(name[1]) for path, name in named.items() if name}
    return sorted(steps, key=steps.__getitem__, reverse=True)


def unfinished_checkpoints(folder: Path) -> list[Path]:
    """Return the parts of checkpoints in a phase's folder that a killed process has left."""
    return list(folder.glob(".step-*.new"))


def remove_checkpoint(path: Path) -> None:
    """Remove a checkpoint: a file, or the folder of a sharded model."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
