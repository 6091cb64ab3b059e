"""Speed of the models that a comparison has kept, timed one after another, and accuracy and speed with 8-bit weights.

    python -m benchmarks.compare.kept KEPT --results benchmarks/results/epochs.jsonl

KEPT is the folder of `python -m benchmarks.compare --keep`. Runs that share a machine disturb each other's timings:
here each model is timed alone, in turns with the dense model in PyTorch, on both batches that its run timed, and the
lines of the results get these speed-ups. Dense models, and heads and neurons, are exported to ONNX with 8-bit weights,
too, scored on the test data and timed likewise; each is a line of its own, as another method.
"""

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

import gating
from benchmarks import records
from benchmarks.compare.methods import INT8, METHODS
from benchmarks.compare.outcome import Row
from benchmarks.compare.runs import folder_of
from benchmarks.measuring import interleave, machine, ratio
from benchmarks.serving.encoder import graph, pytorch
from gating.commands.evaluate import evaluation_settings
from gating.models.sources import Pretrained
from gating.run.build import build_objects
from gating.run.data import RunData, encode_examples, load_examples
from gating.serving.graphs.runtime import GraphModel
from gating.tracking.verbosity import quiet_libraries

# Length and number of the texts that runs time, and the names of the speed-ups.
_TIMED = (("speedup", "p95", 8), ("speedup_short", "median", 1))
_ROUNDS, _SECONDS = 60, 4.0


def main() -> None:
    """Time the models that were not timed here yet, and write the results."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compare.kept",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("kept", type=Path, help="the folder with the runs")
    parser.add_argument("--results", type=Path, required=True, help="the file of JSON lines")
    options = parser.parse_args()
    torch.set_num_threads(1)
    quiet_libraries()
    for row in records.read(options.results):
        folder = options.kept / folder_of(row)
        dense = options.kept / folder_of({**row, "method": "none", "asked": None})
        if "timed" not in row and (folder / "compact").is_dir() and (dense / "compact").is_dir():
            write(options.results, row, measure(folder, dense, row))


def measure(run: Path, dense_run: Path, row: Row) -> list[dict[str, Any]]:
    """Return the result of a run with speed-ups that are timed here, and that of the model with 8-bit weights."""
    settings = evaluation_settings(str(run / "compact"), [], run_folder=run, split=None)
    objects = replace(build_objects(settings), source=Pretrained(str(run / "compact")))
    model = gating.load_compact(run / "compact").eval()
    data = encode_examples(load_examples(settings, objects), settings, objects, model)
    dense = pytorch(gating.load_compact(dense_run / "compact").eval())
    facts = {"timed": machine()["date"], "timed_on": machine()["cpu"]}
    rows = [{**row, **facts, **speeds(dense, pytorch(model), data)}]
    name = f"{row['method']}{INT8}"
    if name in METHODS:
        with tempfile.TemporaryDirectory() as folder:
            report = gating.export_onnx(run / "compact", Path(folder) / "int8", int8=True)
            exported: Any = GraphModel(model.config, report.path)
            found = data.evaluate(exported, "test", task=objects.task, metrics=data.prepared.metrics, title=name)
            score = {f"test/{row['metric']}": found.metrics[row["metric"]], "megabytes": report.megabytes}
            rows.append({**rows[0], "method": name, **score, **speeds(dense, graph(report.path), data)})
    for each in rows:
        print(f"{each['data']} {each['method']} {each['speedup']:.2f}x {each['speedup_short']:.2f}x", flush=True)
    return rows


def speeds(dense: Callable[[Any], Any], smaller: Callable[[Any], Any], data: RunData) -> dict[str, float]:
    """Return the speed-ups of a model, timed in turns with the dense one on the batches that a run times."""
    speeds = {}
    for name, length, size in _TIMED:
        batch = data.module.timing_batch(length, size=size, split="validation")
        calls = {"dense": partial(dense, batch), "smaller": partial(smaller, batch)}
        times = interleave(calls, rounds=_ROUNDS, warm_up=3, budget_s=_SECONDS)
        speeds[name] = ratio(times, "dense", "smaller")[0]
    return speeds


def write(path: Path, row: Row, found: list[dict[str, Any]]) -> None:
    """Write results in the place of one, and leave all others as they are."""
    rows = records.read(path)
    at = rows.index(row)
    records.write(path, [*rows[:at], *found, *rows[at + 1 :]])


if __name__ == "__main__":
    main()
