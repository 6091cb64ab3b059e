"""Errors and warnings whose remedy is a parameter in Python and a setting in a command."""

from functools import partial

__all__ = ["RemedyError", "RemedyWarning"]


class _Remedy(Exception):  # noqa: N818 - one base of errors and warnings
    """A message that tells each user the remedy in their own words.

    Attributes:
        in_command: The message for users of the command line.
    """

    def __init__(self, problem: str, *, python: str, command: str) -> None:
        """Args: ``problem`` is the beginning of both messages, ``python`` and ``command`` are how each goes on."""
        super().__init__(problem + python)
        self.in_command = problem + command

    def __reduce__(self) -> tuple[object, ...]:
        """Make copies that have both messages."""
        return partial(type(self), "", python=str(self), command=self.in_command), ()


class RemedyError(_Remedy, ValueError):
    """An error with a remedy."""


class RemedyWarning(_Remedy, UserWarning):
    """A warning with a remedy."""
