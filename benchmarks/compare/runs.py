"""Runs of train.py, and the speed-up of shallower models over the full one."""

import hashlib
import json
import math
import shutil
import sys
import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir

import gating
from benchmarks.compare.methods import DENSE
from benchmarks.measuring import ROOT, ask, run_python
from gating.distributed.launch import check_devices
from gating.run.folder import RunFolder
from gating.run.prepare import prepare
from gating.run.settings import read_settings
from gating.tracking.verbosity import quiet_libraries
from train import CONF

# The layers to load, for families that name them differently, too.
_DEPTH = ("+model.config.num_hidden_layers=", "+model.config.n_layer=", "+model.config.num_layers=")

# A teacher is trained by one of several runs at the same time.
_TEACHERS: dict[Path, threading.Lock] = defaultdict(threading.Lock)


def train(settings: Sequence[str], folder: Path, *, threads: int) -> dict[str, Any]:
    """Run train.py once in a folder, which is emptied, and return the numbers in its ``metrics.json``.

    The dense model of a run has as many layers as were loaded. With fewer layers than are stored, the speed-up is
    therefore measured again, against the full model.

    Raises:
        RuntimeError: The run failed.
    """
    shutil.rmtree(folder, ignore_errors=True)
    run_python("train.py", *settings, f"output_dir={folder}", threads=threads)
    numbers = read_numbers(folder)
    full = [setting for setting in settings if not setting.startswith(_DEPTH)]
    if len(full) < len(settings):
        numbers |= ask("benchmarks.compare.runs", str(folder), *full, OMP_NUM_THREADS=str(threads))
    return numbers


def read_numbers(folder: Path) -> dict[str, Any]:
    """Return the numbers of a run."""
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))


def dense_run(settings: Sequence[str]) -> Path:
    """Return the folder of the full model, fine-tuned densely as a run with these settings; trained at the first call.

    Raises:
        RuntimeError: The training failed.
    """
    own = (
        "objective",
        "gates.",
        "distillation",
        "latency.",
        "scheduler.restart=",
        "recovery=",
        "convergence=",
        *_DEPTH,
    )
    shared = [setting for setting in settings if not setting.startswith(own) and DENSE not in setting]
    folder = ROOT / "outputs" / "teachers" / hashlib.sha256(json.dumps(shared).encode()).hexdigest()[:16]
    with _TEACHERS[folder]:
        if not (folder / "compact").is_dir():
            train([*shared, "objective=none"], folder, threads=1)
    return folder


def measure_against_full(folder: Path, settings: Sequence[str]) -> Mapping[str, Any]:
    """Time the model in the folder of a run against the full model, in turns and on the batch that a run times.

    Returns:
        The numbers of ``metrics.json`` that depend on the dense model.
    """
    quiet_libraries()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        composed = compose("config", overrides=[*settings, f"output_dir={folder / 'full'}"])
    with RunFolder(folder / "full", resumes=False, overwrite=True) as place:
        run = prepare(read_settings(composed), place)
    device = check_devices(run.settings.trainer).root
    dense, smaller = run.state.model.to(device), gating.load_compact(folder / "compact").to(device)
    summary = run.state.summary
    summary.latency, summary.short_latency = run.timing.compare(dense, smaller, run_seconds=math.inf)
    summary.compare_models(dense, smaller, run.timing.batch(device))
    numbers = summary.flat() | summary.timed_batches()
    return {name: value for name, value in numbers.items() if not name.startswith("seconds/")}


def folder_of(row: Mapping[str, Any]) -> str:
    """Return the name of the folder of a run that is kept."""
    return "-".join(str(row[name]) for name in ("data", "method", "asked", "seed", "steps"))


if __name__ == "__main__":
    print(json.dumps(measure_against_full(Path(sys.argv[1]), sys.argv[2:])))
