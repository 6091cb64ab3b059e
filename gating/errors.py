"""Errors that a user can mend, and their messages."""

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """An error that the user can mend, as its message explains."""


class InputError(UserError, ValueError):
    """A value that cannot be used."""


class InputTypeError(UserError, TypeError):
    """A value of a type that cannot be used."""


class DamageError(InputError):
    """A model folder with a damaged file, or with files that do not belong together."""


class MissingPackageError(UserError, ImportError):
    """A package that is not installed."""


class OperationError(UserError, RuntimeError):
    """An operation that is refused or has failed."""


class LayoutError(InputError, OperationError):
    """A removal that was undone, because the layout of a class is another one than its description."""


def explain(error: BaseException) -> str:
    """Return the message of an error in one line.

    >>> explain(OSError("There is   no room.")), explain(TimeoutError())
    ('There is no room.', 'TimeoutError')
    """
    return getattr(error, "in_command", None) or " ".join(str(error).split()) or type(error).__name__


def shorten(text: str, *, most: int = 80) -> str:
    """Return a text for a message, cut off after ``most`` characters."""
    return text if len(text) <= most else f"{text[:most]}..."


@contextmanager
def loading(name: str, *, remedy: str) -> Iterator[None]:
    """Raise any error of a library that loads files in a ``with`` block as :class:`InputError` with a remedy.

    Args:
        name: Name of the loaded object, at the start of the message.
        remedy: Sentence at the end of the message.

    Raises:
        InputError: The object cannot be loaded.
    """
    try:
        yield
    except Exception as error:
        if is_input_error(error):
            if name not in explain(error):
                error.in_command = f"{name}: {explain(error)}"  # type: ignore[attr-defined]
            raise
        cause = error.__cause__ or error  # Readers of datasets wrap it.
        reason = shorten(explain(cause).rstrip("."), most=300)
        raise InputError(
            f"{name} cannot be loaded: files are missing or damaged ({type(cause).__name__}: {reason}). {remedy}"
        ) from error


def is_input_error(error: BaseException) -> bool:
    """Return whether an error's message is all that a user needs.

    These are the errors of this package for users, and the system's: no space, no permission, no network. All others
    are faults, and their traceback matters.

    >>> is_input_error(InputError("seed=-1 cannot be used.")), is_input_error(ValueError("invalid literal"))
    (True, False)
    """
    return isinstance(error, (UserError, OSError))
