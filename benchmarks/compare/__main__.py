"""Accuracy against heads kept: methods x numbers of heads x seeds x data sets, all with the same steps.

    python -m benchmarks.compare --data ../shared/data/sick ../shared/data/sst2_sentence
    python -m benchmarks.compare --data "sst2:data=glue data.name=sst2" --settings model=bert-base --steps 2000
    python -m benchmarks.compare --methods budget "cubic:objective=budget objective.schedule.shape=cubic" --heads 8
    python -m benchmarks.compare --show                    the table and the figure of all results

Each run is train.py with the same model, batches, learning rates and number of steps; a method that searches spends
them on search and recovery together, dense fine-tuning on training alone. A result is a line of a file of JSON lines,
runs that are in it are not repeated, and interrupted ones are run again.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from rich.progress import Progress

from benchmarks import records
from benchmarks.compare.methods import METHODS, Data, Method, read_data, read_method
from benchmarks.compare.outcome import draw, headline, table
from benchmarks.measuring import ROOT, machine

RESULTS = ROOT / "benchmarks" / "results" / "compare.jsonl"
# Bfloat16 is two and a half times as fast as single precision on a CPU that has instructions for it.
COMMON = ("trainer.precision=bf16-mixed", "logger=csv", "callbacks=none")


class Job(NamedTuple):
    """One run."""

    data: Data
    method: Method
    num_heads: int | None
    seed: int


def main() -> None:
    """Run missing jobs, then print the table and draw the figure."""
    options = parse()
    jobs = list(plan(options))
    done = {_key(row) for row in records.read(options.results)}
    missing = [job for job in jobs if _key(facts(job, options)) not in done]
    if not options.show:
        run_all(missing, options)
    rows = records.read(options.results)
    print(table(rows))
    draw(rows, options.results.with_suffix(".png"))


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default_methods = [name for name in METHODS if not name.startswith("l0")]
    parser.add_argument("--data", nargs="+", default=[], help="folders with a file for each split, or 'NAME:SETTINGS'")
    parser.add_argument(
        "--methods", nargs="+", default=default_methods, help=f"{', '.join(METHODS)} or 'NAME:SETTINGS'"
    )
    parser.add_argument("--heads", nargs="+", type=int, default=[18, 8], help="how many heads to keep (default: 18 8)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="(default: 0 1 2)")
    parser.add_argument("--steps", type=int, default=600, help="optimizer steps of every run (default: 600)")
    parser.add_argument("--settings", nargs="*", default=[], help="further settings of train.py, for every run")
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time, one CPU thread each (default: 1)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the file of JSON lines; the figure is beside it")
    parser.add_argument("--show", action="store_true", help="run nothing")
    options = parser.parse_args()
    try:
        options.data = [read_data(text) for text in options.data]
        options.methods = [read_method(text) for text in options.methods]
    except ValueError as error:
        parser.error(str(error))
    if not options.data and not options.show:
        parser.error("name data sets with --data")
    return options


def plan(options: argparse.Namespace) -> Iterator[Job]:
    """List the runs, seed by seed, so that an interrupted comparison has compared all methods."""
    for seed, data, method in product(options.seeds, options.data, options.methods):
        for num_heads in options.heads if method.takes_number else [None]:
            yield Job(data, method, num_heads, seed)


def facts(job: Job, options: argparse.Namespace) -> dict[str, Any]:
    """Return the facts that identify a run in the results."""
    settings = [
        *COMMON,
        f"trainer.max_steps={options.steps}",
        *job.method.settings_for(job.num_heads),
        *options.settings,
    ]
    return {
        "data": job.data.name,
        "method": job.method.name,
        "asked": job.num_heads,
        "seed": job.seed,
        "steps": options.steps,
        "settings": settings,
    }


def run_all(jobs: list[Job], options: argparse.Namespace) -> None:
    """Run, and append each result as it comes."""
    with Progress(refresh_per_second=1) as progress, ThreadPoolExecutor(options.jobs) as pool:
        bar = progress.add_task("Runs", total=len(jobs))
        for finished in as_completed([pool.submit(run, job, facts(job, options)) for job in jobs]):
            if finished.exception():
                pool.shutdown(wait=False, cancel_futures=True)
            row = finished.result()
            records.append(options.results, row)
            shown = f"{row['data']} {row['method']} {row['num_heads']:.0f} seed {row['seed']}"
            progress.console.print(f"{shown}: {headline(row):.4f}", highlight=False)
            progress.advance(bar)


def run(job: Job, about: dict[str, Any]) -> dict[str, Any]:
    """Run train.py once.

    Raises:
        RuntimeError: It failed, or kept another number of heads than was asked for.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(ROOT / "train.py"), *job.data.settings, *about["settings"]]
        command += [f"seed={job.seed}", f"output_dir={folder}/run"]
        done = subprocess.run(
            command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
        numbers = json.loads((Path(folder) / "run" / "metrics.json").read_text(encoding="utf-8"))
    if job.num_heads not in (None, numbers["num_heads"]):
        raise RuntimeError(f"{job.method.name} kept {numbers['num_heads']} heads, not the {job.num_heads} asked for")
    return {**about, **numbers, "threads": 1, **{name: machine()[name] for name in ("cpu", "cores", "date", "commit")}}


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["data"], row["method"], row["asked"], row["seed"], tuple(row["settings"])


if __name__ == "__main__":
    main()
