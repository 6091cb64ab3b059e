"""Folders that are replaced whole or not at all, and checks that a folder can be written to."""

import os
import shutil
import tempfile
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from gating.errors import FolderExistsError, UserError
from gating.storage.results import ResultKind, check_result, write_manifest

__all__ = ["check_folder", "check_replaceable", "is_inside", "is_or_holds", "replacing_folder"]


@contextmanager
def replacing_folder(
    target: Path, *, overwrite: bool, kind: ResultKind, keep: Iterable[str | os.PathLike[str] | None] = ()
) -> Iterator[Path]:
    """Yield an empty folder that replaces the target when the block ends without an error.

    The new folder is written beside the target under a hidden name, and gets checksums of its files by which it may be
    replaced later. An earlier folder is removed only after the new one is on the disk and in its place; after an error
    nothing is left behind.

    Args:
        target: Path of the folder.
        overwrite: Whether an earlier result at this path may be replaced.
        kind: Kind of result that may be replaced; a folder with any other file in it, or a changed one, stays.
        keep: Folders that the new one is made from; names of hub repositories among them are ignored.

    Raises:
        FileExistsError: The target exists and ``overwrite`` is false, or it is or holds anything but an earlier result
            or one of ``keep``; or a part of the path is a file.
        OSError: The folder cannot be written, for example on a full disk.
    """
    target, keep = Path(os.path.abspath(target)), list(keep)
    check_replaceable(target, overwrite=overwrite, kind=kind, keep=keep)
    missing_parents = [place for place in target.parents if not place.exists()]
    try:
        with _reporting_failed_writes(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            with _scratch_folder(target) as scratch:
                (scratch / "new").mkdir()
                yield scratch / "new"
                write_manifest(scratch / "new")
                _flush(scratch / "new")
                # The folder is checked again: writing may have taken hours.
                check_replaceable(target, overwrite=overwrite, kind=kind, keep=keep)
                _swap(scratch, target)
    except BaseException:
        for place in missing_parents:
            if place.is_dir() and not any(place.iterdir()):
                place.rmdir()
        raise


def check_replaceable(
    target: Path, *, overwrite: bool, kind: ResultKind, keep: Iterable[str | os.PathLike[str] | None] = ()
) -> None:
    """Check that :func:`replacing_folder` could replace a folder, by the same arguments and errors; change nothing."""
    target = Path(os.path.abspath(target))
    if not os.path.lexists(target):
        _nearest_folder(target, shown=target)
        return
    if target.is_dir() and not target.is_symlink() and not any(target.iterdir()):
        return
    if not overwrite:
        problem = f"{target} exists already. Choose another place, or pass "
        error = FolderExistsError(f"{problem}overwrite=True.")
        error.in_command = f"{problem}{kind.in_command}."
        raise error
    if is_or_holds(target, Path.cwd()):
        raise FolderExistsError(
            f"{target} is or holds the current folder, which is not replaced. Choose another place."
        )
    for source in (Path(source) for source in keep if source):
        if is_or_holds(target, source):
            raise FolderExistsError(
                f"{target} is or holds {source}, which the {kind.name} is made from, so it is not replaced. Choose "
                "another place."
            )
    check_result(target, kind=kind)


def check_folder(folder: Path, *, overwrite: bool, name: str = "output_dir", ignored: Collection[str] = ()) -> None:
    """Check that a folder can be created and written to; change nothing.

    Args:
        folder: Path of a run's folder.
        overwrite: Whether the folder may hold files already.
        name: Name of the setting with this path, for error messages.
        ignored: Names of files with which the folder counts as empty.

    Raises:
        FileExistsError: The folder holds files and ``overwrite`` is false, or a part of its path is a file.
        PermissionError: The folder cannot be written to.
    """
    if not overwrite and folder.is_dir() and any(path.name not in ignored for path in folder.iterdir()):
        problem = f"{name}={folder} is not empty. Choose another folder, or pass overwrite="
        error = FolderExistsError(f"{problem}True.")
        error.in_command = f"{problem}true."
        raise error
    parent = _nearest_folder(folder, shown=f"{name}={folder}")
    try:
        Path(tempfile.mkdtemp(prefix=".head-gating-", dir=parent)).rmdir()
    except OSError as error:
        raise PermissionError(
            f"{name}={folder} cannot be written to ({error.strerror} in {parent}). Choose another place."
        ) from error


def _nearest_folder(folder: Path, *, shown: str | Path) -> Path:
    """Return the nearest existing folder of a path, the path itself included."""
    parent = next(place for place in (folder, *folder.absolute().parents) if os.path.lexists(place))
    if not parent.is_dir():
        kind = "a file" if parent.exists() else "a link to nothing"
        raise FolderExistsError(f"{shown} cannot be a folder: {parent} is {kind}. Choose another place.")
    return parent


def is_or_holds(folder: Path, path: Path) -> bool:
    """Return whether a folder is the given path or holds it, with links resolved."""
    real = path.resolve()
    return folder.exists() and any(place.exists() and place.samefile(folder) for place in (real, *real.parents))


def is_inside(path: Path, folder: Path) -> bool:
    """Return whether a path is inside a folder, or the folder, with links resolved; neither need exist."""
    return path.resolve().is_relative_to(folder.resolve())


@contextmanager
def _reporting_failed_writes(target: Path) -> Iterator[None]:
    """Name the target and the remedy in errors of writing."""
    try:
        yield
    except (OSError, SafetensorError) as error:  # In this block, safetensors only writes.
        if isinstance(error, UserError):
            raise
        reason = getattr(error, "strerror", None) or str(error).rstrip(".")
        raise OSError(
            f"{target} cannot be written ({reason}); nothing was changed there. Make room or choose another place."
        ) from error


@contextmanager
def _scratch_folder(target: Path) -> Iterator[Path]:
    """Yield a hidden folder beside the target, which is removed afterwards."""
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        yield scratch
    except RuntimeError as error:
        # torch.save hides the system's error; another write raises it again.
        if not isinstance(error, UserError):
            _extend_files(scratch)
        raise
    finally:
        shutil.rmtree(scratch / "new", ignore_errors=True)
        # An old folder that could not be moved back stays in it.
        with suppress(OSError):
            scratch.rmdir()


def _extend_files(folder: Path) -> None:
    """Append a mebibyte to each file of a temporary folder, for the system's error if it cannot grow."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("ab") as file:
                file.write(bytes(2**20))


def _flush(folder: Path) -> None:
    """Flush a folder and all files in it to the disk."""
    if os.name != "posix":
        return  # Other systems cannot open folders.
    for path in [*folder.rglob("*"), folder]:
        file = os.open(path, os.O_RDONLY)
        try:
            os.fsync(file)
        finally:
            os.close(file)


def _swap(scratch: Path, target: Path) -> None:
    new, old = scratch / "new", scratch / "old"
    try:
        if os.path.lexists(target):
            target.rename(old)
        new.rename(target)
    except BaseException:
        if os.path.lexists(old) and not os.path.lexists(target):
            old.rename(target)
        raise
    shutil.rmtree(scratch, ignore_errors=True)
