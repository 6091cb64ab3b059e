"""Accuracy and speed of the models of a comparison with 8-bit weights, in ONNX Runtime.

    python -m benchmarks.compare.int8 KEPT --results benchmarks/results/beyond.jsonl

KEPT is the folder that `python -m benchmarks.compare --keep` has filled. Each of its dense and compact models is
exported, scored on the test data, and timed in turns with the dense model in PyTorch on the batch that its run timed. A
result is a line of the file beside that of the model, as another method; those that are in it are not repeated.
"""

import argparse
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch

import gating
from benchmarks import records
from benchmarks.compare.methods import INT8, LATENCY_METHODS
from benchmarks.compare.outcome import Row
from benchmarks.compare.runs import folder_of
from benchmarks.measuring import interleave, machine, ratio
from benchmarks.serving.encoder import accuracies, evaluation_data, onnx_runtime, pytorch
from benchmarks.serving.runtimes import silenced
from gating.tracking.verbosity import quiet_libraries

_ROUNDS, _SECONDS = 30, 30.0
# Length and number of the texts that runs time.
_TIMED = (("p95", 8), ("median", 1))


def main() -> None:
    """Measure the models that have no result yet, and append the results."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compare.int8",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("kept", type=Path, help="the folder with the runs")
    parser.add_argument("--results", type=Path, required=True, help="the file of JSON lines")
    options = parser.parse_args()
    torch.set_num_threads(1)
    quiet_libraries()
    rows = records.read(options.results)
    done = {_key(row) for row in rows}
    for row in rows:
        name = f"{row['method']}{INT8}"
        folder = options.kept / folder_of(row)
        if name in LATENCY_METHODS and folder.is_dir() and _key({**row, "method": name}) not in done:
            dense = options.kept / folder_of({**row, "method": "none", "asked": None})
            found = {**row, "method": name, **measure(folder, dense, row)}
            records.append(options.results, found)
            print(f"{row['data']} {name} {found['speedup']:.2f}x seed {row['seed']}: {found[_metric(row)]:.4f}")


def measure(run: Path, dense_run: Path, row: Row) -> dict[str, Any]:
    """Export a model with 8-bit weights, and return its test score and its speed-ups over the dense model.

    Args:
        run: Folder of the run of the model.
        dense_run: Folder of the run of the dense model.
        row: Result of the run.
    """
    with tempfile.TemporaryDirectory() as folder:
        with silenced():
            report = gating.export_onnx(run / "compact", Path(folder) / "int8", int8=True)
        forward = onnx_runtime(Path(folder) / "int8")
        dense = pytorch(gating.load_compact(dense_run / "compact").eval())
        data = evaluation_data(run)
        score = accuracies(data, forward)["test"]
        speeds = []
        for length, size in _TIMED:
            batch = data.module.timing_batch(length, size=size, split="validation")
            times = interleave(
                {"dense": partial(dense, batch), "int8": partial(forward, batch)},
                rounds=_ROUNDS,
                warm_up=2,
                budget_s=_SECONDS,
            )
            speeds.append(ratio(times, "dense", "int8")[0])
    facts = {name: machine()[name] for name in ("cpu", "gpu", "cores", "threads", "date", "commit")}
    speed = {"speedup": speeds[0], "short_speedup": speeds[-1]}
    return {**facts, **speed, _metric(row): score, "megabytes": report.megabytes}


def _metric(row: Row) -> str:
    return f"test/{row['metric']}"


def _key(row: Row) -> tuple[Any, ...]:
    return row["data"], row["method"], row["asked"], row["seed"], row["steps"], tuple(row["settings"])


if __name__ == "__main__":
    main()
