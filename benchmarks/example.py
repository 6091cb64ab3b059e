"""The embedded example with and without gates, over several seeds.

    python -m benchmarks.example --seeds 0 1 2

Every run is `python train.py` with its defaults but for the objective and the seed. Results are appended to a file of
JSON lines as runs end, runs that are in it are not repeated, and a table of all of them is printed at the end.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "example.jsonl"
OBJECTIVES = {"budget": "18 of 72 heads", "none": "dense"}


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--objectives", nargs="+", default=list(OBJECTIVES), choices=list(OBJECTIVES))
    arguments = parser.parse_args()
    done = {(row["objective"], row["seed"]) for row in read_results()}
    for seed in arguments.seeds:
        for objective in arguments.objectives:
            if (objective, seed) not in done:
                measure(objective, seed)
    print_table(read_results())


def measure(objective: str, seed: int) -> None:
    """Run once and append the outcome."""
    with tempfile.TemporaryDirectory() as folder:
        settings = [
            f"objective={objective}",
            f"seed={seed}",
            f"output_dir={folder}/run",
            "logger=csv",
            "callbacks=none",
        ]
        subprocess.run([sys.executable, str(ROOT / "train.py"), *settings], check=True)
        numbers = json.loads((Path(folder) / "run" / "metrics.json").read_text())
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    with RESULTS.open("a") as file:
        file.write(json.dumps({"objective": objective, **numbers}) + "\n")


def read_results() -> list[dict[str, float | str]]:
    """Return one row for each run that is done."""
    # Earlier versions called the split by another name.
    text = RESULTS.read_text().replace("validation/", "val/") if RESULTS.exists() else ""
    return [json.loads(line) for line in text.splitlines()]


def print_table(rows: list[dict[str, float | str]]) -> None:
    """Print means over seeds, as Markdown."""
    print("| | seeds | heads | parameters | validation accuracy | test accuracy | speed-up |\n|" + "---|" * 7)
    for objective, title in OBJECTIVES.items():
        runs = [row for row in rows if row["objective"] == objective]
        if runs:
            means = {name: statistics.mean(float(run[name]) for run in runs) for name in NAMES}
            seeds = ", ".join(str(run["seed"]) for run in runs)
            print(
                f"| {title} | {seeds} | {means['num_heads']:.0f} | {means['num_parameters']:,.0f} "
                f"| {100 * means['val/accuracy']:.2f} % | {100 * means['test/accuracy']:.2f} % "
                f"| {means['speedup']:.2f} |"
            )


NAMES = ("num_heads", "num_parameters", "val/accuracy", "test/accuracy", "speedup")

if __name__ == "__main__":
    main()
