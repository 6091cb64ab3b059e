"""The results of a run, and their comparison with those of another."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gating.tracking.loggers import read_log


@dataclass(frozen=True)
class Outcome:
    """The results of a run."""

    weights: bytes
    heads: dict[str, Any]
    metrics: dict[str, Any]
    log: str

    @classmethod
    def of(cls, folder: Path) -> "Outcome":
        """Read the folder of a finished run."""
        numbers = json.loads((folder / "metrics.json").read_text())
        config = json.loads((folder / "compact" / "config.json").read_text())
        measured = ("seconds/", "latency_", "speedup")
        return cls(
            weights=(folder / "compact" / "model.safetensors").read_bytes(),
            heads=config.get("head_gating", {}).get("units", {}),
            metrics={name: value for name, value in numbers.items() if not name.startswith(measured)},
            log=repr(read_log(folder)),
        )

    def compare(self, other: "Outcome") -> dict[str, bool]:
        """Return which results are equal to the bit."""
        return {f"same_{name}": value == getattr(other, name) for name, value in vars(self).items()}


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Return the content of each file below a folder by its path; None for a folder. Locks are left out."""
    paths = (path for path in folder.rglob("*") if path.name != ".lock")
    return {str(path): path.read_bytes() if path.is_file() else None for path in paths}
