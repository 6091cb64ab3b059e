"""Whole runs of train.py, with gates and dense, in turns: training and finalizing, without evaluation and export."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.measuring import ROOT, ratio

__all__ = ["measure_runs"]

Row = dict[str, Any]

STAGES = ("search", "finalize", "recovery", "dense")


def measure_runs(device: torch.device, *, quick: bool) -> Iterator[Row]:
    """Run the embedded example for some steps, with its default objective and densely."""
    steps, rounds = (4, 2) if quick else (60, 3)
    times: dict[str, list[float]] = {"budget": [], "none": []}
    for number in range(rounds):
        for objective in sorted(times, reverse=number % 2 == 1):
            times[objective].append(_train(objective, steps, device))
    what = "search, finalizing and recovery / dense training, train.py"
    yield {
        "what": what,
        "case": f"embedded example, {steps} steps",
        "ratio": ratio(times, "budget", "none"),
        "at_most": 1.0,
    }


def _train(objective: str, steps: int, device: torch.device) -> float:
    """Run once and return the seconds of the stages that train and finalize."""
    with tempfile.TemporaryDirectory() as folder:
        settings = [f"objective={objective}", f"trainer.max_steps={steps}", f"output_dir={folder}/run"]
        # One validation at the end, not in the middle of what is timed.
        settings += ["logger=csv", "callbacks=none", "trainer.limit_val_batches=0"]
        settings += ["trainer=gpu"] if device.type == "cuda" else []
        command = [sys.executable, str(ROOT / "train.py"), *settings]
        subprocess.run(command, check=True, capture_output=True)
        numbers = json.loads((Path(folder) / "run" / "metrics.json").read_text())
    return sum(numbers.get(f"seconds/{stage}", 0.0) for stage in STAGES)
