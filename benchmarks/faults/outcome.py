"""The results of a run, and their comparison with those of another."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from gating.tracking.loggers import read_log

__all__ = ["JUDGED", "Outcome", "progress"]

JUDGED = ("same_weights", "same_heads", "same_metrics", "same_log")


@dataclass(frozen=True)
class Outcome:
    """The results of a run."""

    weights: dict[str, torch.Tensor]
    heads: dict[str, Any]
    metrics: dict[str, Any]
    log: str

    @classmethod
    def of(cls, folder: Path) -> "Outcome":
        """Read the folder of a finished run."""
        numbers = json.loads((folder / "metrics.json").read_text())
        measured = ("seconds/", "latency_", "speedup")
        return cls(
            weights=load_file(folder / "compact" / "model.safetensors"),
            heads=json.loads((folder / "compact" / "config.json").read_text()).get("head_gating", {}).get("units", {}),
            metrics={name: value for name, value in numbers.items() if not name.startswith(measured)},
            log=repr(read_log(folder)),
        )

    def compare(self, other: "Outcome") -> dict[str, bool]:
        """Return which results are equal to the bit."""
        same = self.weights.keys() == other.weights.keys() and all(
            torch.equal(self.weights[name], other.weights[name]) for name in self.weights
        )
        return dict(
            zip(
                JUDGED,
                (same, self.heads == other.heads, self.metrics == other.metrics, self.log == other.log),
                strict=True,
            )
        )


def progress(folder: Path) -> str:
    """Describe the progress of a run by its files."""
    if (folder / "compact").exists():
        return "after the export"
    for phase in ("recovery", "removed", "dense", "search"):
        steps = [int(path.stem.partition("-")[2]) for path in (folder / "checkpoints" / phase).glob("step-*.ckpt")]
        if steps:
            return f"in {phase} after step {max(steps)}" if phase != "removed" else "after the removal"
    return "before a checkpoint" if (folder / "config.yaml").exists() else "while loading"
