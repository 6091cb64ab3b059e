"""Errors about folders and records; see ``gating/errors.py`` for all classes of errors that a user can mend."""

__all__ = ["DamageError", "InputError", "MissingFileError", "UserError"]


class UserError(Exception):
    """An error that the user can mend, as its message explains."""

    in_command: str | None = None  # The message for users of the command line, where it differs.


class InputError(UserError, ValueError):
    """A value that cannot be used."""


class DamageError(InputError):
    """A model folder with a damaged file, or with files that do not belong together."""

    def __init__(self, message: str, *, reason: str | None = None) -> None:
        """Args: ``reason`` is the message without folder and remedy; the whole message when left out."""
        super().__init__(message)
        self.reason = message if reason is None else reason


class MissingFileError(UserError, FileNotFoundError):
    """A file or folder that does not exist."""
