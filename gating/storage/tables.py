"""Tables in JSON files."""

import json
from pathlib import Path
from typing import Any

__all__ = ["read_table"]


def read_table(path: Path) -> dict[str, Any]:
    """Return the content of a JSON file; an empty table if the file cannot be read or has no table."""
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return read if isinstance(read, dict) else {}
