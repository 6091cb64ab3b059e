"""Errors of folders and records that a user can mend; they travel in compact folders.

The package raises subclasses of :class:`UserError`, each of which is one of Python's own classes, too, so that
``except ValueError`` works. Other exceptions are faults of the program or of a library.
"""

__all__ = ["DamageError", "InputError", "MissingFileError", "UserError"]


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


class MissingFileError(UserError, FileNotFoundError):
    """A file or folder that does not exist."""
