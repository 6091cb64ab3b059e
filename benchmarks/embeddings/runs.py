"""Runs of the comparison: trained where they are missing, and measured beside the dense model."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sentence_transformers import SentenceTransformer

from benchmarks.embeddings.lines import PYTORCH, RUNTIMES, settings_of, wanted
from benchmarks.embeddings.models import DENSE, open_model
from benchmarks.embeddings.quality import Neighbors, measure_quality, nearest
from benchmarks.embeddings.sets import Sets
from benchmarks.embeddings.speed import measure_speed
from benchmarks.embeddings.texts import TRAIN
from benchmarks.measuring import ROOT, machine

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
        fixed = ["exports=[]", "logger=csv", "trainer.enable_progress_bar=false", "resume=auto"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run(
            [sys.executable, str(ROOT / "train.py"), *settings, *fixed], check=True, cwd=ROOT, env=environment
        )
    return folder


def run_folder(name: str, seed: int, *, work: Path) -> Path:
    """Return the folder of a run, which other settings and other texts give another name."""
    digest = hashlib.sha256(wanted(name, seed)[0]["settings"].encode())
    digest.update((work / "texts" / TRAIN).read_bytes())
    return work / "runs" / f"{name}-s{seed}-{digest.hexdigest()[:8]}"


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
    sizes: Row = {}
    if seed is not None:
        numbers = json.loads((run_folder(name, seed, work=work) / "metrics.json").read_text(encoding="utf-8"))
        sizes = {each: numbers[each] for each in ("num_heads", "num_neurons", "num_parameters") if each in numbers}
    models = _open(name, seed, work=work)
    speeds = measure_speed(models)
    neighbors = nearest(models["dense", PYTORCH], sets.sentences)
    for row in wanted(name, seed):
        model = (name, row["runtime"])
        yield {**row, **sizes, **measure_quality(models[model], sets, neighbors), **speeds[model], **machine()}


def time_again(rows: Sequence[Row], *, work: Path) -> list[Row]:
    """Return the results of one line and seed with their speeds measured again, on the machine of today."""
    name, seed = rows[0]["line"], rows[0]["seed"]
    speeds = measure_speed(_open(name, seed, work=work))
    return [{**row, **speeds[name, row["runtime"]], **machine()} for row in rows]


def _open(name: str, seed: int | None, *, work: Path) -> dict[tuple[str, str], SentenceTransformer]:
    """Return a line's model in each of its runtimes, and the dense one in the same."""
    folders = {"dense": DENSE}
    if seed is not None:
        folders[name] = str(run_folder(name, seed, work=work) / "compact")
    runtimes = [row["runtime"] for row in wanted(name, seed)]
    return {(line, runtime): open_model(folder, runtime) for line, folder in folders.items() for runtime in runtimes}


def measure_folder(folder: str, sets: Sets, *, neighbors: Neighbors) -> Iterator[Row]:
    """Yield the quality of any folder of sentence-transformers in PyTorch, and of its exports in ONNX Runtime."""
    for runtime in RUNTIMES:
        model = open_model(folder, runtime)
        yield {"folder": folder, "runtime": runtime, **measure_quality(model, sets, neighbors)}
