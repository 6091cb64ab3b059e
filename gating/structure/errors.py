"""Errors that a user can mend, and warnings with a remedy.

Every error that this package raises on purpose is a :class:`UserError` and one of Python's own classes, so that
``except ValueError`` works, too. Everything else is a fault of the program or of a library.
"""

from functools import partial

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
]


class UserError(Exception):
    """An error that the user can mend; its message says how.

    Attributes:
        in_command: The message for users of the command line, where it differs.
    """

    in_command: str | None = None


class InputError(UserError, ValueError):
    """A value that cannot be used."""


class DamageError(InputError):
    """A model folder with a damaged file, or with files that do not belong together.

    Attributes:
        reason: The finding alone, without the folder and the remedy that the message adds.
    """

    def __init__(self, message: str, *, reason: str | None = None) -> None:
        """Args: ``reason`` is the whole message when left out."""
        super().__init__(message)
        self.reason = message if reason is None else reason


class InputTypeError(UserError, TypeError):
    """A value of a type that cannot be used."""


class MissingFileError(UserError, FileNotFoundError):
    """A file or folder that does not exist."""


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
