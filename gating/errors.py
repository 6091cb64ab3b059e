"""Telling a user's mistake from a fault of the program."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from gating.structure.errors import DamageError, InputError, MissingFileError, UserError

__all__ = [
    "DamageError",
    "FolderExistsError",
    "InputError",
    "InputTypeError",
    "MissingFileError",
    "MissingPackageError",
    "OperationError",
    "RemedyError",
    "RemedyWarning",
    "UnreachableError",
    "UserError",
    "explain",
    "is_input_error",
    "loading",
    "shorten",
    "unwrapped",
]

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class InputTypeError(UserError, TypeError):
    """A value of a type that cannot be used."""


class FolderExistsError(UserError, FileExistsError):
    """A file or folder that is not replaced."""


class MissingPackageError(UserError, ImportError):
    """A package that is not installed."""


class OperationError(UserError, RuntimeError):
    """An operation that is refused or has failed."""


class UnreachableError(UserError, ConnectionError):
    """A server that cannot be reached."""


class _Remedy(Exception):  # noqa: N818 - one base of errors and warnings
    """A message that tells each user the remedy in their own words."""

    in_command: str | None = None

    def __init__(self, problem: str, *, python: str, command: str) -> None:
        """Args: ``problem`` is the beginning of both messages, ``python`` and ``command`` are how each goes on."""
        super().__init__(problem + python)
        self.in_command = problem + command

    def __reduce__(self) -> tuple[object, ...]:
        """Make copies that have both messages."""
        return partial(type(self), "", python=str(self), command=str(self.in_command)), ()


class RemedyError(_Remedy, InputError):
    """A value that cannot be used; the remedy is a parameter in Python and a setting in a command."""


class RemedyWarning(_Remedy, UserWarning):
    """A warning whose remedy is a parameter in Python and a setting in a command."""


def explain(error: BaseException) -> str:
    """Return an error as a sentence for a command; what the system says tells neither the place nor the remedy."""
    in_command: str | None = getattr(error, "in_command", None)
    if in_command is not None:
        return in_command
    if not isinstance(error, OSError) or error.strerror is None:
        return " ".join(str(error).split()) or type(error).__name__
    what = "written" if error.errno in (*_FULL, errno.EROFS) else "used"
    remedy = " Make room there." if error.errno in _FULL else ""
    return f"{error.filename or 'A file'} cannot be {what}: {error.strerror[:1].lower()}{error.strerror[1:]}.{remedy}"


def shorten(text: str, *, most: int = 80) -> str:
    """Return a text, or its beginning, to be shown in a message."""
    return text if len(text) <= most else f"{text[:most]}..."


def unwrapped(error: Exception) -> BaseException:
    """Return what was at fault: not Hydra, but what it has called."""
    return error.__cause__ if type(error).__module__.startswith("hydra.") and error.__cause__ else error


@contextmanager
def loading(what: str, *, remedy: str) -> Iterator[None]:
    """Say in one sentence what a library makes of files that it cannot load, whatever it raises.

    Args:
        what: What is loaded from files that somebody else has written.
        remedy: A sentence for the user.

    Raises:
        ValueError: It cannot be loaded.
    """
    try:
        yield
    except Exception as error:
        if is_input_error(error):
            raise
        reason = shorten(explain(error).rstrip("."), most=300)
        raise InputError(
            f"{what} cannot be loaded, probably because of damage ({type(error).__name__}: {reason}). {remedy}"
        ) from error


def is_input_error(error: BaseException) -> bool:
    """Say whether an error is about the user's input, so that its message is all they need.

    That is an error of the file system or network, one of Hydra's, which is about settings, or a ValueError or
    TypeError that code of this package raised on purpose, or Hydra as it called what the settings name; the same types
    raised deeper down, in a library, are faults that want a traceback.
    """
    if isinstance(error, OSError) or _is_about_settings(error):
        return True
    if not isinstance(error, (ValueError, TypeError, RuntimeError, ImportError)) or error.__traceback__ is None:
        return False
    innermost = error.__traceback__
    while innermost.tb_next is not None:
        innermost = innermost.tb_next
    module = str(innermost.tb_frame.f_globals.get("__name__", ""))
    # Lightning's callbacks say what is wrong with their arguments when they are called.
    return module.split(".")[0] in ("gating", "hydra") or module.startswith("pytorch_lightning.callbacks.")


def _is_about_settings(error: BaseException) -> bool:
    """Say whether Hydra or OmegaConf raised an error because of settings; both are known here by name only."""
    kind = type(error)
    is_interpolation = kind.__module__.startswith("omegaconf.") and kind.__name__.startswith("Interpolation")
    return kind.__module__.startswith("hydra.") or is_interpolation
