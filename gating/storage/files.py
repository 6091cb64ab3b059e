"""Files and folders: written whole or not at all, renamed instead of replaced, locked, and read as tables.

Nothing that stands where we write is deleted: it gets a number (``run.1``, ``model.1.gguf``), and a line says so.
"""

import errno
import json
import logging
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock
from safetensors import SafetensorError

from gating.errors import InputError

LOCK = ".lock"
_log = logging.getLogger(__name__)


@contextmanager
def replacing_file(target: Path, *, keep_old: bool = False) -> Iterator[Path]:
    """Yield the path of a new file that replaces the target when the block ends without an error.

    The target's name refers to the old file or to the new one at any time, also if the process is killed. The new file
    is flushed to the disk before the block ends. With ``keep_old`` the old file is renamed (:func:`move_aside`). Errors
    of the system have the target as ``filename``, or the other file that could not be read.
    """
    new = target.with_name(f".{target.name}.{os.getpid()}.new")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield new
        _flush(new)
        if keep_old:
            _put_in_place(new, target)
        else:
            os.replace(new, target)
    except BaseException as error:
        new.unlink(missing_ok=True)
        cause = _find_system_error(error)
        if cause is not None:
            named = target if cause.filename in (None, str(new)) else cause.filename
            raise OSError(cause.errno or errno.EIO, cause.strerror or str(cause), str(named)) from error
        raise


def write_atomically(target: Path, text: str) -> None:
    """Write a text file; the errors are those of :func:`replacing_file`."""
    with replacing_file(target) as new:
        new.write_text(text, encoding="utf-8")


def _find_system_error(error: BaseException) -> OSError | None:
    """Return the system's error behind an error; archive writers raise another one, and numpy one without a number."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and (seen.errno is not None or type(seen) is OSError):
            return seen
        seen = seen.__cause__ or seen.__context__
    return None


@contextmanager
def replacing_folder(target: Path, *, overwrite: bool) -> Iterator[Path]:
    """Yield an empty folder that becomes the target when the block ends without an error.

    The new folder is written beside the target under a hidden name. What is at the target is renamed once the new
    folder is on the disk (:func:`move_aside`); after an error nothing has changed.
    """
    target = Path(os.path.abspath(target))
    check_free(target, overwrite=overwrite)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        try:
            # Of the rights of a new folder, instead of those of a temporary one.
            new = scratch / "new"
            new.mkdir()
            yield new
            for path in [*new.rglob("*"), new]:
                _flush(path)
            _put_in_place(new, target)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        # An error with a sentence of ours.
        if isinstance(error, OSError) and error.errno is None:
            raise
        reason = getattr(error, "strerror", None) or str(error).rstrip(".")
        raise OSError(
            f"{target} cannot be written ({reason}); nothing was changed there. Make room or choose another place."
        ) from error


def _put_in_place(new: Path, target: Path) -> None:
    """Rename a new file or folder to the target, and an old one aside; after an error the old one is there again."""
    aside = _free_name(target)
    try:
        move_aside(target)
        new.rename(target)
    except BaseException:  # Signals among them, also between the two.
        if aside.exists() and not os.path.lexists(target):
            aside.rename(target)
        raise


def _flush(path: Path) -> None:
    """Flush a file or folder to the disk; Windows opens no folders."""
    if path.is_file() or os.name == "posix":
        file = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
        try:
            os.fsync(file)
        finally:
            os.close(file)


def check_free(target: Path, *, overwrite: bool, setting: str = "") -> None:
    """Raise ``FileExistsError`` unless a file or folder can be written at a place; one with only a lock is empty.

    With ``overwrite``, an earlier one may be renamed. A ``setting`` with this path is named in messages.
    """
    shown = f"{setting}={target}" if setting else str(target)
    parent = next(place for place in (target, *target.absolute().parents) if os.path.lexists(place))
    if parent != target and not parent.is_dir():
        raise FileExistsError(f"{shown} cannot be written: {parent} is no folder. Choose another place.")
    if overwrite or not os.path.lexists(target):
        return
    if target.is_dir() and all(path.name == LOCK for path in target.iterdir()):
        return
    option = "overwrite=true" if setting else "overwrite=True (--overwrite)"
    raise FileExistsError(
        f"{shown} exists already{' and is not empty' * target.is_dir()}. Choose another place, or pass {option}, which "
        "renames it."
    )


def move_aside(path: Path) -> Path | None:
    """Rename ``run`` to ``run.1``, ``a.gguf`` to ``a.1.gguf``; return the new path. An empty folder is removed."""
    if not os.path.lexists(path):
        return None
    if path.is_dir() and not path.is_symlink() and not any(path.iterdir()):
        path.rmdir()
        return None
    moved = _free_name(path)
    path.rename(moved)
    _log.warning(f"{path} was renamed to {moved}.")
    return moved


def _free_name(path: Path) -> Path:
    stem, suffix = (path.stem, path.suffix) if path.is_file() else (path.name, "")
    number = 1
    while os.path.lexists(found := path.with_name(f"{stem}.{number}{suffix}")):
        number += 1
    return found


def take_lock(folder: Path, *, problem: str) -> filelock.BaseFileLock:
    """Return the lock of a folder, which is created if needed; the system releases it with this process.

    Raises ``InputError`` with ``problem`` as its message if another process has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder / LOCK, is_singleton=True)
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        raise InputError(problem) from None
    except NotImplementedError:
        pass  # A file system without locks.
    return lock


def read_table(path: Path) -> dict[str, Any]:
    """Return the content of a JSON file; an empty table if the file cannot be read or has no table."""
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return read if isinstance(read, dict) else {}


def finite_number(value: object) -> float | None:
    """Return a value of a JSON file if it is a finite number, whole ones as they are; None otherwise.

    >>> finite_number(18), finite_number(True), finite_number("18")
    (18, None, None)
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if math.isfinite(value) else None


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
