"""Redaction of keys, tokens and passwords in files and output.

Secrets are recognized by their name (``model.token``), by their place (the password in a URL), or as the value of an
environment variable with such a name.
"""

import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

# Replacement of a secret.
HIDDEN = "***"
# They match as a whole name or behind an underscore: not in pad_token, max_tokens or tokenizer.
_LONG = (
    r"(?:\w*_)?(?:api_?key|access_key|auth_token|access_token|hf_token|secret|secret_key|password|passwd|passphrase)"
)
_NAME = rf"(?:token|use_auth_token|{_LONG})"
_SECRET_NAME = re.compile(_NAME, re.I)
_SECRET_VARIABLE = re.compile(r".*(TOKEN|KEY|SECRET|PASSWORD|PASSPHRASE|CREDENTIALS)", re.I)
_IN_TEXT = [
    # user:password@ and token@ in URLs, and signatures and tokens in their query.
    (re.compile(r"(?<=://)[^/\s@'\"]+@"), f"{HIDDEN}@"),
    (re.compile(rf"([?&](?:{_NAME}|key|sig|signature|x-amz-[\w-]+)=)[^&\s'\"]+", re.I), rf"\1{HIDDEN}"),
    # NAME=VALUE, as on a command line or in a message; 'NAME': 'VALUE' and, on a line of its own, NAME: VALUE.
    (re.compile(rf"(\b{_NAME}=['\"]?)[^\s'\",}}\]]+", re.I), rf"\1{HIDDEN}"),
    (re.compile(rf"((?:['\"]{_NAME}['\"]|^\s*{_NAME}): ?['\"]?)[^\s'\",}}\]]+", re.I | re.M), rf"\1{HIDDEN}"),
    (re.compile(r"\bhf_\w{16,}"), HIDDEN),
]
_MIN_LENGTH = 8  # shorter values occur within words


def redact(text: str) -> str:
    """Return a text with its secrets replaced by ``***``.

    Example:
        >>> redact("git clone https://me:secret@host.org/x")
        'git clone https://***@host.org/x'
    """
    for value in _secret_values():
        text = text.replace(value, HIDDEN)
    for pattern, replacement in _IN_TEXT:
        text = pattern.sub(replacement, text)
    return text


def redact_settings(settings: Any) -> Any:
    """Return nested plain values with their secrets replaced by ``***``; null values stay.

    Example:
        >>> redact_settings({"name": "bert", "token": "abc", "password": None})
        {'name': 'bert', 'token': '***', 'password': None}
    """
    if isinstance(settings, dict):
        return {
            name: HIDDEN if value is not None and _SECRET_NAME.fullmatch(str(name)) else redact_settings(value)
            for name, value in settings.items()
        }
    if isinstance(settings, list):
        return [redact_settings(value) for value in settings]
    return redact(settings) if isinstance(settings, str) else settings


def redact_file(path: Path) -> None:
    """Redact a text file in place, if it exists."""
    if path.is_file():
        path.write_text(redact(path.read_text(encoding="utf-8")), encoding="utf-8")


def redact_output() -> None:
    """Redact all that is printed from now on, and drop output to a closed pipe, which must not end a run of hours."""
    # A stream that was closed at the start, as by ``>&-``, is None; the next file would take its number.
    sys.stdout = _RedactingStream(sys.stdout or open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    sys.stderr = _RedactingStream(sys.stderr or open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115


class _RedactingStream:
    """Text stream that redacts its input."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        # Files of Windows have no arrows; their lines would be dropped. A log has each line at once.
        if hasattr(stream, "reconfigure"):
            is_strict = stream.errors == "strict"
            stream.reconfigure(errors="replace" if is_strict else stream.errors, line_buffering=True)

    def write(self, text: str) -> int:
        # A closed stream raises ValueError.
        with suppress(OSError, ValueError):
            self._stream.write(redact(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        self.write("".join(lines))

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def hidden_arguments() -> Iterator[None]:
    """Redact ``sys.argv`` during a ``with`` block, for libraries that record it."""
    before, sys.argv = sys.argv, [redact(argument) for argument in sys.argv]
    try:
        yield
    finally:
        sys.argv = before


def _secret_values() -> list[str]:
    """Return the secret values in the environment and on the command line, the longest first."""
    found = {value for name, value in os.environ.items() if _SECRET_VARIABLE.fullmatch(name)}
    for argument in sys.argv:
        name, _, value = argument.partition("=")
        if _SECRET_NAME.fullmatch(name.rpartition(".")[2]):
            found.add(value.strip("'\""))
    return sorted((value for value in found if len(value) >= _MIN_LENGTH), key=len, reverse=True)
