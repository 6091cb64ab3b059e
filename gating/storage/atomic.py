"""Files that are there whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["replacing_file"]


@contextmanager
def replacing_file(target: Path) -> Iterator[Path]:
    """Yield the path of a new file that takes the target's place when the block ends without an error.

    Whatever ends the process, under the target's name there is the old file or the new one. The new file is on the disk
    when the block has ended, so that what is removed afterwards is not missed when the machine goes down.

    Args:
        target: The file; its folder is made if it is not there.

    Raises:
        OSError: It cannot be written, with the target's name: the disk is full, say. The old file is still there.
    """
    new = target.with_name(f".{target.name}.{os.getpid()}.new")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield new
        with new.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(new, target)
    except BaseException as error:
        new.unlink(missing_ok=True)
        cause = _system_error(error)
        if cause is not None:
            raise type(cause)(cause.errno, cause.strerror, str(target)) from error
        raise


def _system_error(error: BaseException) -> OSError | None:
    """Return what the system had against it; writers of archives stumble over it once more while they end."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno is not None:
            return seen
        seen = seen.__cause__ or seen.__context__
    return None
