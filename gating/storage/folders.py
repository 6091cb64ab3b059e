"""Folders that appear whole or not at all, and whether a run's folder can be written to."""

import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from gating.errors import FolderExistsError
from gating.storage.results import Kind, check_result

__all__ = ["check_folder", "is_or_holds", "replacing_folder"]


@contextmanager
def replacing_folder(
    target: Path, *, overwrite: bool, kind: Kind, keep: Iterable[str | os.PathLike[str] | None] = ()
) -> Iterator[Path]:
    """Yield an empty folder that takes the target's place when the block ends without an error.

    Until then it lies beside the target, under a hidden name. What was there before goes only when the new folder is
    in its place and on the disk; after an error nothing is left behind.

    Args:
        target: Where the folder goes.
        overwrite: Whether an earlier result that is there may be replaced.
        kind: Which results may be; a folder with anything else in it stays.
        keep: What the new folder is made from; names of the hub among them are passed over.

    Raises:
        FileExistsError: Something is there and ``overwrite`` is false, or it is or holds something else than an earlier
            result, or what the new one is made from; or a part of the path is a file.
        OSError: The place cannot be written to, or the disk is full.
    """
    target, sources = Path(os.path.abspath(target)), [Path(source) for source in keep if source]
    _check_replaceable(target, overwrite=overwrite, kind=kind, sources=sources)
    made = [place for place in target.parents if not place.exists()]
    try:
        with _clear_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
            try:
                (scratch / "new").mkdir()
                yield scratch / "new"
                _flush(scratch / "new")
                # Once more: it may have taken hours.
                _check_replaceable(target, overwrite=overwrite, kind=kind, sources=sources)
                _swap(scratch / "new", target, old=scratch / "old")
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
    except BaseException:
        for place in made:
            if place.is_dir() and not any(place.iterdir()):
                place.rmdir()
        raise


def check_folder(folder: Path, *, overwrite: bool, name: str = "output_dir") -> None:
    """Make sure that a folder can be created and written to, and leave no trace.

    Args:
        folder: The folder of a run.
        overwrite: Whether it may hold something already.
        name: The setting that it comes from, for messages.

    Raises:
        FileExistsError: It holds something and ``overwrite`` is false, or a part of its path is a file.
        PermissionError: It cannot be written to.
    """
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise FolderExistsError(
            f"{name}={folder} holds something already. Choose another folder, or pass overwrite=true."
        )
    parent = _parent_there(folder, shown=f"{name}={folder}")
    try:
        Path(tempfile.mkdtemp(prefix=".head-gating-", dir=parent)).rmdir()
    except OSError as error:
        raise PermissionError(
            f"{name}={folder} cannot be written to ({error.strerror} in {parent}). Choose another place."
        ) from error


def _parent_there(folder: Path, *, shown: str | Path) -> Path:
    """Return the folder, or the nearest one above it that exists; a file there is an error."""
    parent = next(place for place in (folder, *folder.absolute().parents) if os.path.lexists(place))
    if not parent.is_dir():
        kind = "a file" if parent.exists() else "a link to nothing"
        raise FolderExistsError(f"{shown} cannot be a folder: {parent} is {kind}. Choose another place.")
    return parent


def is_or_holds(folder: Path, path: Path) -> bool:
    """Say whether a folder is another one or holds it, by whatever names and links."""
    real = path.resolve()
    return folder.exists() and any(place.exists() and place.samefile(folder) for place in (real, *real.parents))


def _check_replaceable(target: Path, *, overwrite: bool, kind: Kind, sources: Iterable[Path]) -> None:
    if not os.path.lexists(target):
        _parent_there(target, shown=target)
        return
    if target.is_dir() and not target.is_symlink() and not any(target.iterdir()):
        return
    if not overwrite:
        raise FolderExistsError(f"{target} exists already. Choose another place, or pass overwrite=True.")
    if is_or_holds(target, Path.cwd()):
        raise FolderExistsError(
            f"{target} is or holds the current folder, which is not replaced. Choose another place."
        )
    for source in sources:
        if is_or_holds(target, source):
            raise FolderExistsError(
                f"{target} is or holds {source}, which the {kind} is made from, so it is not replaced. Choose another "
                "place."
            )
    check_result(target, kind=kind)


@contextmanager
def _clear_errors(target: Path) -> Iterator[None]:
    """Say in one sentence that the disk does not take what is written."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = _why_not_written(error)
        if reason is None:
            raise
        raise OSError(
            f"{target} cannot be written ({reason}); nothing was changed there. Make room or choose another place."
        ) from error


def _why_not_written(error: Exception) -> str | None:
    """Return what the system said where an error is about writing; the libraries below say it in several ways."""
    if isinstance(error, FileExistsError) and error.errno is None:
        return None  # A sentence of this module.
    if isinstance(error, OSError):
        return error.strerror or str(error).rstrip(".")
    number = re.search(r"\(os error (\d+)\)", str(error))  # safetensors
    if number:
        return os.strerror(int(number[1]))
    return "a file could not be written to its end" if "inline_container" in str(error) else None  # torch


def _flush(folder: Path) -> None:
    """Wait until a folder is on the disk, with all that is in it."""
    if os.name != "posix":
        return  # Elsewhere, folders cannot be opened.
    for path in [*folder.rglob("*"), folder]:
        file = os.open(path, os.O_RDONLY)
        try:
            os.fsync(file)
        finally:
            os.close(file)


def _swap(new: Path, target: Path, *, old: Path) -> None:
    if os.path.lexists(target):
        target.rename(old)
    try:
        new.rename(target)
    except BaseException:
        if os.path.lexists(old):
            old.rename(target)
        raise
