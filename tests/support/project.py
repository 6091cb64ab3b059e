"""The settings of the project, from pyproject.toml."""

from pathlib import Path
from typing import Any

from tests.support.tiny_run import ROOT

try:
    import tomllib
except ImportError:  # Python 3.10, where pytest brings its like.
    import tomli as tomllib

__all__ = ["PROJECT", "SETTINGS", "read_toml"]


def read_toml(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text(encoding="utf-8"))


SETTINGS = read_toml(ROOT / "pyproject.toml")
PROJECT = SETTINGS["project"]
