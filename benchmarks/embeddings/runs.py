"""Runs of the comparison: trained where they are missing, and measured beside the dense model."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.embeddings.lines import PYTORCH, RUNTIMES, settings_of, wanted
from benchmarks.embeddings.models import DENSE, open_model
from benchmarks.embeddings.quality import Neighbors, measure_quality, nearest
from benchmarks.embeddings.sets import Sets
from benchmarks.embeddings.speed import measure_speed
from benchmarks.measuring import ROOT, machine

__all__ = ["is_finished", "measure_folder", "measure_line", "run_folder", "train_line"]

Row = dict[str, Any]


def train_line(name: str, seed: int, *, work: Path) -> Path:
    """Return the folder of a run, which is trained, or resumed, unless it is finished.

    Args:
        name: Name of the line.
        seed: The seed.
        work: Folder of texts and runs.
    """
    folder = run_folder(name, seed, work=work)
    if not is_finished(folder):
        settings = settings_of(name, seed, texts=work / "texts", folder=folder)
        fixed = ["exports=[]", "logger=csv", "callbacks=none", "resume=auto"]
        subprocess.run([sys.executable, str(ROOT / "train.py"), *settings, *fixed], check=True, cwd=ROOT)
    return folder


def run_folder(name: str, seed: int, *, work: Path) -> Path:
    """Return the folder of a run."""
    return work / "runs" / f"{name}-s{seed}"


def is_finished(folder: Path) -> bool:
    """Return whether a run is finished."""
    return (folder / "metrics.json").is_file()


def measure_line(name: str, seed: int | None, sets: Sets, *, work: Path) -> Iterator[Row]:
    """Yield the results of a line, one for each runtime, all timed in turns with the dense model.

    Args:
        name: Name of the line.
        seed: The seed of its run; None for the dense model.
        sets: Evaluation sets.
        work: Folder of texts and runs.
    """
    source, exports = DENSE, work / "exports" / "dense"
    sizes: Row = {}
    if seed is not None:
        folder = run_folder(name, seed, work=work)
        source, exports = str(folder / "compact"), work / "exports" / folder.name
        numbers = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        sizes = {each: numbers.get(each) for each in ("num_heads", "num_neurons", "num_parameters")}
    dense = {("dense", runtime): open_model(DENSE, runtime, exports=work / "exports" / "dense") for runtime in RUNTIMES}
    rows = wanted(name, seed)
    own = {
        (name, row["runtime"]): open_model(source, row["runtime"], exports=exports) for row in rows if seed is not None
    }
    speeds = measure_speed(dense | own)
    neighbors = nearest(dense["dense", PYTORCH], sets.sentences)
    models = dense | own
    for row in rows:
        which = (name, row["runtime"])
        yield {**row, **sizes, **measure_quality(models[which], sets, neighbors), **speeds[which], **machine()}


def measure_folder(folder: str, sets: Sets, *, neighbors: Neighbors, exports: Path) -> Iterator[Row]:
    """Yield the quality of any folder of sentence-transformers in PyTorch, and of its exports in ONNX Runtime."""
    for runtime in RUNTIMES:
        model = open_model(folder, runtime, exports=exports)
        yield {"folder": folder, "runtime": runtime, **measure_quality(model, sets, neighbors)}
