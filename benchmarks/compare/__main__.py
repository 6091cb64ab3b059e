"""Test accuracy of every method on the same data with the same steps, against heads kept or against measured speed.

    python -m benchmarks.compare --data OUT/sick OUT/sst2_sentence
    python -m benchmarks.compare --data "sst2:data=glue data.name=sst2" --settings model=bert-base --steps 2000
    python -m benchmarks.compare --data OUT/trec --methods budget importance --heads 8
    python -m benchmarks.compare --against latency --data OUT/sick --seeds 0 1 2 3 4
    python -m benchmarks.compare --show                    the table and the figure of all results

The comparison has methods x sizes x seeds x data sets. A size is a number of heads; with --against latency a speed-up
(--speedups) for heads and neurons, a number of heads for heads alone, and a number of layers (--layers) for the first
layers of the model, fine-tuned densely. Speed-ups are measured by each run, in turns with the full dense model. Methods
with a teacher learn from the full model, which is trained once for each data set and seed, with as many steps.

Each run is train.py with the same model, batches, learning rates and number of steps; a method that searches spends
them on search and recovery together, dense fine-tuning on training alone. A result is a line of a file of JSON lines,
runs that are in it are not repeated, and interrupted ones are run again.
"""

import argparse
import shutil
import tempfile
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from rich.progress import track

from benchmarks import records
from benchmarks.compare import latency, outcome
from benchmarks.compare.methods import (
    HEADS,
    INT8,
    LATENCY_METHODS,
    LAYERS,
    METHODS,
    SPEEDUP,
    TEACHER,
    Data,
    Method,
    read_data,
    read_method,
)
from benchmarks.compare.runs import dense_run, folder_of, read_numbers, train
from benchmarks.measuring import RESULTS, machine

# Bfloat16 is two and a half times as fast as single precision on a CPU that has instructions for it.
COMMON = ("trainer.precision=bf16-mixed", "logger=csv", "callbacks=none")
# What is compared -> methods by name, and the module that shows.
COMPARISONS = {"heads": (METHODS, outcome), "latency": (LATENCY_METHODS, latency)}


class Job(NamedTuple):
    """One run."""

    data: Data
    method: Method
    number: float | None
    seed: int


def main() -> None:
    """Run missing jobs, then print the table and draw the figure."""
    options = parse()
    done = {_key(row) for row in records.read(options.results)}
    jobs = [(job, facts(job, options)) for job in plan(options)]
    missing = [(job, about) for job, about in jobs if _key(about) not in done]
    failures = 0
    for job, about in track([] if options.show else missing, "Runs"):
        try:
            row = run(job, about, keep=options.keep)
        except RuntimeError as error:
            failures += 1
            print(error)
            continue
        records.append(options.results, row)
        shown = f"{row['data']} {row['method']} {row['num_heads']:.0f} heads {row['speedup']:.2f}x seed {row['seed']}"
        print(f"{shown}: {outcome.headline(row):.4f}")
    rows = records.read(options.results)
    show = COMPARISONS[options.against][1]
    print("\n".join(show.lines(rows)))
    show.draw(rows, options.results.with_suffix(".png"))
    if failures:
        raise SystemExit(f"{failures} of {len(missing)} runs failed; run this command again to repeat them.")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--against", choices=COMPARISONS, default="heads", help="(default: heads)")
    parser.add_argument("--data", nargs="+", default=[], help="folders with a file for each split, or 'NAME:SETTINGS'")
    shown = "; ".join(f"against {name}: {', '.join(each[0])}" for name, each in COMPARISONS.items())
    parser.add_argument("--methods", nargs="+", help=shown)
    parser.add_argument("--heads", nargs="+", type=int, default=[18, 8], help="how many heads to keep (default: 18 8)")
    parser.add_argument("--speedups", nargs="+", type=float, default=[1.5, 2, 3], help="(default: 1.5 2 3)")
    parser.add_argument("--layers", nargs="+", type=int, default=[4, 3, 2], help="(default: 4 3 2)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="(default: 0 1 2)")
    parser.add_argument("--steps", type=int, default=600, help="optimizer steps of every run (default: 600)")
    parser.add_argument("--settings", nargs="*", default=[], help="further settings of train.py, for every run")
    parser.add_argument("--results", type=Path, help="the file of JSON lines; the figure is beside it")
    parser.add_argument("--keep", type=Path, help="a folder that keeps the folders of the runs, 60 MB each")
    parser.add_argument("--show", action="store_true", help="run nothing")
    options = parser.parse_args()
    options.results = options.results or RESULTS / (
        "latency.jsonl" if options.against == "latency" else "compare.jsonl"
    )
    methods, _ = COMPARISONS[options.against]
    usual = [name for name in methods if not name.startswith("l0") and not name.endswith(INT8)]
    try:
        options.data = [read_data(text) for text in options.data]
        options.methods = [read_method(text, methods) for text in options.methods or usual]
    except ValueError as error:
        parser.error(str(error))
    if not options.data and not options.show:
        parser.error("name data sets with --data")
    return options


def plan(options: argparse.Namespace) -> Iterator[Job]:
    """List the runs, seed by seed, so that an interrupted comparison has compared all methods."""
    numbers = {None: [None], HEADS: options.heads, SPEEDUP: options.speedups, LAYERS: options.layers}
    for seed, data, method in product(options.seeds, options.data, options.methods):
        for number in numbers[method.ask]:
            yield Job(data, method, number, seed)


def facts(job: Job, options: argparse.Namespace) -> dict[str, Any]:
    """Return the facts that identify a run in the results."""
    steps = f"trainer.max_steps={options.steps}"
    return {
        "data": job.data.name,
        "method": job.method.name,
        "asked": job.number,
        "seed": job.seed,
        "steps": options.steps,
        "settings": [*COMMON, steps, *job.method.settings_for(job.number), *options.settings],
    }


def run(job: Job, about: dict[str, Any], *, keep: Path | None) -> dict[str, Any]:
    """Run train.py once, in a folder that is kept or not, and return the result with the facts that identify it.

    Raises:
        RuntimeError: It failed, or kept another number of heads than was asked for.
    """
    settings = [*job.data.settings, *about["settings"], f"seed={job.seed}"]
    if TEACHER in settings:
        settings[settings.index(TEACHER)] = f"distillation.teacher={dense_run(settings) / 'compact'}"
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "run" if keep is None else keep / folder_of(about)
        if job.method.name == "none":  # which is the teacher of other methods, too
            shutil.copytree(dense_run(settings), folder, dirs_exist_ok=True)
            numbers = read_numbers(folder)
        else:
            numbers = train(settings, folder, threads=1)
    if job.method.ask == HEADS and job.number not in (None, numbers["num_heads"]):
        raise RuntimeError(f"{job.method.name} kept {numbers['num_heads']} heads, not the {job.number} asked for")
    return {
        **about,
        **numbers,
        "threads": 1,
        **{name: machine()[name] for name in ("cpu", "gpu", "cores", "date", "commit")},
    }


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["data"], row["method"], row["asked"], row["seed"], tuple(row["settings"])


if __name__ == "__main__":
    main()
