"""Files that are replaced whole or not at all."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["replacing_file", "write_atomically"]


@contextmanager
def replacing_file(target: Path, *, check: Callable[[], object] | None = None) -> Iterator[Path]:
    """Yield the path of a new file that replaces the target when the block ends without an error.

    The target's name refers to the old file or to the new one at any time, also if the process is killed. The new file
    is flushed to the disk before the block ends, so files that it supersedes can be removed afterwards.

    Args:
        target: Path of the file; its folder is created if needed.
        check: Function that is called once the new file is on the disk; if it raises an error, the old one stays.

    Raises:
        OSError: The file cannot be written, for example on a full disk; ``filename`` is the target. The old file stays.
    """
    new = target.with_name(f".{target.name}.{os.getpid()}.new")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield new
        with new.open("rb+") as file:
            os.fsync(file.fileno())
        if check is not None:
            check()
        os.replace(new, target)
    except BaseException as error:
        new.unlink(missing_ok=True)
        cause = _find_system_error(error)
        if cause is not None:
            raise type(cause)(cause.errno, cause.strerror, str(target)) from error
        raise


def write_atomically(target: Path, text: str) -> None:
    """Write a text file; the errors are those of :func:`replacing_file`."""
    with replacing_file(target) as new:
        new.write_text(text, encoding="utf-8")


def _find_system_error(error: BaseException) -> OSError | None:
    """Return the system's error behind an error; archive writers raise another one while they close the file."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno is not None:
            return seen
        seen = seen.__cause__ or seen.__context__
    return None
