"""The experiments of conf/experiment that need no hub, with gates and without, once each.

    python -m benchmarks.tasks --data OUT
    python -m benchmarks.tasks --data OUT --experiments wnut17 --settings trainer.precision=bf16-mixed

Every run is `python train.py experiment=NAME`, and the same with `objective=none`. Results are appended to a file of
JSON lines as runs end, and runs that are in it are not repeated.
"""

import argparse
import tempfile
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch

from benchmarks import records
from benchmarks.compare.runs import train
from benchmarks.measuring import RESULTS, machine
from gating.report.score import Score

Row = dict[str, Any]

OUTPUT = RESULTS / "tasks.jsonl"

# Experiment -> the metric to report.
EXPERIMENTS = {
    "digits-vit": Score("accuracy"),
    "wnut17": Score("f1"),
    "multi30k-marian": Score("bleu", unit=""),
    "shakespeare-gpt2": Score("perplexity", scale=1, unit=""),
    "shakespeare-llama": Score("perplexity", scale=1, unit=""),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run missing experiments."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="the folder of python -m benchmarks.data")
    parser.add_argument("--experiments", nargs="+", default=list(EXPERIMENTS), choices=list(EXPERIMENTS))
    parser.add_argument("--settings", nargs="*", default=[], help="further settings of train.py")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    options = parser.parse_args(arguments)
    done = {(row["experiment"], row["objective"]) for row in records.read(options.output)}
    for experiment, objective in product(options.experiments, ("budget", "none")):
        if (experiment, objective) not in done:
            places = [f"paths.data={options.data.resolve()}", "logger=csv", "callbacks=none"]
            command = [f"experiment={experiment}", f"objective={objective}", *options.settings]
            with tempfile.TemporaryDirectory() as folder:
                numbers = train([*command, *places], Path(folder) / "run", threads=torch.get_num_threads())
            about = {"experiment": experiment, "objective": objective, "settings": options.settings, **machine()}
            records.append(options.output, about | numbers)


def table(rows: Sequence[Row]) -> list[str]:
    """Return the machines, and a row for each experiment with the dense beside the compact model."""
    runs = {(row["experiment"], row["objective"]): row for row in rows}
    shown = []
    for experiment, score in EXPERIMENTS.items():
        compact, dense = runs.get((experiment, "budget")), runs.get((experiment, "none"))
        if compact is None or dense is None:
            continue
        key = f"test/{score.name}"
        shown.append(
            {
                "experiment": f"`{experiment}`",
                "metric": f"test {score.name}",
                "dense": score.show(dense[key]),
                "compact": score.show(compact[key]),
                "heads": f"{compact['num_heads']} of {compact['num_heads_before']}",
                "parameters": f"{compact['num_parameters'] / compact['num_parameters_before']:.0%}",
                "speed-up": f"{compact['speedup']:.2f}",
                "settings besides `experiment=`": " ".join(f"`{setting}`" for setting in compact["settings"]) or "none",
            }
        )
    return [*records.machines(rows), records.markdown(shown)]


if __name__ == "__main__":
    main()
