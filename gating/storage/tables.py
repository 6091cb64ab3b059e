"""Tables in JSON files."""

import json
import math
from pathlib import Path
from typing import Any

__all__ = ["finite_number", "read_table"]


def read_table(path: Path) -> dict[str, Any]:
    """Return the content of a JSON file; an empty table if the file cannot be read or has no table."""
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return read if isinstance(read, dict) else {}


def finite_number(value: object) -> float | None:
    """Return a value of a JSON file if it is a finite number, whole ones as they are; None otherwise.

    >>> finite_number(18), finite_number(True), finite_number("18"), finite_number(10**400)
    (18, None, None, None)
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return value if math.isfinite(value) else None
    except OverflowError:  # A whole number beyond floats.
        return None
