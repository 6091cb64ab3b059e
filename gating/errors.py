"""Errors that a user can mend, and their messages."""

import difflib
import errno
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec

from gating.loader.integrity import DamageError, InputError, UserError

__all__ = [
    "DamageError",
    "FolderExistsError",
    "InputError",
    "InputTypeError",
    "LayoutError",
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
    "missing_extra",
    "nearest_name",
    "shorten",
]

# Packages of the extra "train" that do not come with torch and transformers.
_TRAIN = (
    *("hydra", "omegaconf", "pytorch_lightning", "torchmetrics", "datasets", "pyarrow", "wandb", "pydantic"),
    *("matplotlib", "PIL", "sacrebleu"),
)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class MissingFileError(UserError, FileNotFoundError):
    """A file or folder that does not exist."""


class InputTypeError(UserError, TypeError):
    """A value of a type that cannot be used."""


class FolderExistsError(UserError, FileExistsError):
    """A file or folder that already exists."""


class MissingPackageError(UserError, ImportError):
    """A package that is not installed."""


class OperationError(UserError, RuntimeError):
    """An operation that is refused or has failed."""


class LayoutError(InputError, OperationError):
    """A removal that was undone, because the layout of a class is another one than its description."""


class UnreachableError(UserError, ConnectionError):
    """A server that cannot be reached."""


class _Remedy(Exception):  # noqa: N818 - one base of errors and warnings
    """A message with a remedy for users of Python and another for users of the command line."""

    in_command: str | None = None

    def __init__(self, problem: str, *, python: str, command: str) -> None:
        """Args: ``problem`` is the beginning of both messages, ``python`` and ``command`` are their ends."""
        super().__init__(problem + python)
        self.in_command = problem + command

    def __reduce__(self) -> tuple[object, ...]:
        """Keep both messages in copies."""
        return partial(type(self), "", python=str(self), command=str(self.in_command)), ()


class RemedyError(_Remedy, InputError):
    """A value that cannot be used; the remedy is a parameter in Python and a setting in a command."""


class RemedyWarning(_Remedy, UserWarning):
    """A warning whose remedy is a parameter in Python and a setting in a command."""


def explain(error: BaseException) -> str:
    """Return the message of an error as one sentence for users of a command.

    Messages of the system get the name of the file, and a remedy.

    >>> explain(OSError(errno.ENOSPC, "No space left on device", "a.txt"))
    'a.txt cannot be written: no space left on device. Make room there.'
    """
    in_command: str | None = getattr(error, "in_command", None)
    if in_command is not None:
        return in_command
    if not isinstance(error, OSError) or error.strerror is None:
        return " ".join(str(error).split()) or type(error).__name__
    use = "written" if error.errno in (*_FULL, errno.EROFS) else "used"
    remedy = " Make room there." if error.errno in _FULL else ""
    return f"{error.filename or 'A file'} cannot be {use}: {error.strerror[:1].lower()}{error.strerror[1:]}.{remedy}"


def missing_extra(user: str, *, missing: str | None = None) -> str | None:
    """Return the message that the extra ``train`` of this package is not installed, or None if it is.

    Args:
        user: The command that needs it.
        missing: A package that is missing; by default the first of the extra's.
    """
    missing = missing or next((name for name in _TRAIN if find_spec(name) is None), None)
    if missing is None:
        return None
    return f"{user} needs the extra 'train' ({missing} is missing): pip install 'head-gating[train]'"


def nearest_name(name: str, names: Collection[str], *, prefix: str = "") -> str:
    """Return a sentence with the name that was probably meant, or with all there are.

    Args:
        name: A name that is unknown.
        names: Those that are known.
        prefix: Beginning of the known name in the sentence, such as its group.

    >>> nearest_name("lrr", ["betas", "lr"], prefix="optimizer."), nearest_name("x", ["betas", "lr"])
    ('Did you mean optimizer.lr?', 'There are betas, lr.')
    """
    close = difflib.get_close_matches(name, names, n=1)
    return f"Did you mean {prefix}{close[0]}?" if close else f"There are {', '.join(names)}."


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
