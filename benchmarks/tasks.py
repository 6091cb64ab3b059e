"""The experiments of conf/experiment that need no hub, with gates and without, once each.

    python -m benchmarks.tasks --data OUT
    python -m benchmarks.tasks --data OUT --experiments wnut17 --settings trainer.precision=bf16-mixed

Every run is `python train.py experiment=NAME`, and the same with `objective=none`. Results are appended to a file of
JSON lines as runs end, and runs that are in it are not repeated.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import records
from benchmarks.measuring import RESULTS, ROOT, machine
from gating.report.score import Score

Row = dict[str, Any]

OUTPUT = RESULTS / "tasks.jsonl"

# Experiment -> the metric to report. Those that read FOLDER/NAME/... are left out where there is no such folder.
EXPERIMENTS = {
    "digits-vit": Score("accuracy"),
    "wnut17": Score("f1"),
    "multi30k-marian": Score("bleu", unit=""),
    "shakespeare-gpt2": Score("perplexity", scale=1, unit=""),
    "shakespeare-llama": Score("perplexity", scale=1, unit=""),
}
DATA = {
    "wnut17": "wnut17",
    "multi30k-marian": "multi30k",
    "shakespeare-gpt2": "tinyshakespeare",
    "shakespeare-llama": "tinyshakespeare",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run missing experiments."""
    options = parse(arguments)
    done = {(row["experiment"], row["objective"]) for row in records.read(options.output)}
    for experiment in options.experiments:
        folder = DATA.get(experiment)
        if folder is not None and not (options.data and (options.data / folder).is_dir()):
            print(f"{experiment} is left out: name the folder that has {folder}/ with --data.", file=sys.stderr)
            continue
        for objective in ("budget", "none"):
            if (experiment, objective) not in done:
                records.append(options.output, measure(experiment, objective, options.settings, options.data))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--data", type=Path, help=f"folder with the data sets {', '.join(dict.fromkeys(DATA.values()))}"
    )
    parser.add_argument("--experiments", nargs="+", default=list(EXPERIMENTS), choices=list(EXPERIMENTS))
    parser.add_argument("--settings", nargs="*", default=[], help="further settings of train.py")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    return parser.parse_args(arguments)


def measure(experiment: str, objective: str, settings: Sequence[str], data: Path | None) -> Row:
    """Run once, and return the outcome."""
    with tempfile.TemporaryDirectory() as folder:
        places = [f"output_dir={folder}/run", "logger=csv", "callbacks=none"]
        places += [f"paths.data={data.resolve()}"] if data else []
        command = [f"experiment={experiment}", f"objective={objective}", *settings]
        subprocess.run([sys.executable, str(ROOT / "train.py"), *command, *places], check=True)
        numbers = json.loads((Path(folder) / "run" / "metrics.json").read_text())
    about = {"experiment": experiment, "objective": objective, "settings": list(settings), **machine()}
    return {**about, **numbers}


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
