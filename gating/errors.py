"""Telling a user's mistake from a fault of the program."""

import errno

__all__ = ["explain", "is_input_error"]

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def explain(error: BaseException) -> str:
    """Return an error as a sentence for the user."""
    if not isinstance(error, OSError) or error.strerror is None:
        return str(error)
    where = f"{error.filename} cannot be used" if error.filename else "A file cannot be written"
    remedy = " Make room there." if error.errno in _FULL else ""
    return f"{where}: {error.strerror[:1].lower()}{error.strerror[1:]}.{remedy}"


def is_input_error(error: BaseException) -> bool:
    """Say whether an error is about the user's input, so that its message is all they need.

    That is an error of the file system or network, or a ValueError or TypeError that code of this package raised on
    purpose; the same types raised deeper down, in a library, are faults that want a traceback.
    """
    if isinstance(error, OSError):
        return True
    if not isinstance(error, (ValueError, TypeError, RuntimeError)) or error.__traceback__ is None:
        return False
    innermost = error.__traceback__
    while innermost.tb_next is not None:
        innermost = innermost.tb_next
    return str(innermost.tb_frame.f_globals.get("__name__", "")).split(".")[0] == "gating"
