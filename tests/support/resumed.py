"""Resume of runs by the name of their folder."""

from pathlib import Path
from typing import Any

import yaml

import train
from gating.run.settings import read_settings
from tests.support.tiny_run import compose_settings


def resume(folder: Path, *settings: str) -> int | str | None:
    """Resume a run as the command does; return its exit code."""
    overrides = [f"resume={folder}", *settings]
    try:
        train.guarded_run(compose_settings(overrides), overrides)
    except SystemExit as end:
        return end.code
    return 0


def recalled(folder: Path, *settings: str) -> dict[str, Any]:
    """Return the settings of a run that is resumed."""
    overrides = [f"resume={folder}", *settings]
    return read_settings(compose_settings(overrides), overrides).model_dump()


def change(folder: Path, **settings: Any) -> None:
    """Change settings in the folder of a run by their dotted names, with ``__`` for the dot."""
    stored = yaml.safe_load((folder / "config.yaml").read_text())
    for name, value in settings.items():
        *groups, last = name.split("__")
        here = stored
        for group in groups:
            here = here.setdefault(group, {})
        here[last] = value
    (folder / "config.yaml").write_text(yaml.safe_dump(stored, sort_keys=False))
