"""Test accuracy of every method on the same data with the same steps, against measured speed.

    python -m benchmarks.compare --data OUT/sick OUT/sst2_sentence
    python -m benchmarks.compare --data "sst2:data=glue data.name=sst2" --settings model=bert-base --steps 2000
    python -m benchmarks.compare --data OUT/trec --methods both importance --speedups 2
    python -m benchmarks.compare --show                    the table and the figure of all results

The comparison has methods x sizes x seeds x data sets. A size is a speed-up (--speedups) for heads and neurons, a
number of heads for heads alone (--heads), a number of layers (--layers) for the first layers of the model, fine-tuned
densely, and a share of the cost (--shares) where ways to end a search are compared, such as both_none. Speed-ups are
measured by each run, in turns with the full dense model. Methods with a teacher learn from the full model, which is
trained once for each data set and seed, with as many steps.

Each run is train.py with the same model, batches, learning rates and number of steps; a method that searches spends
them on search and recovery together, dense fine-tuning on training alone. A result is a line of a file of JSON lines,
runs that are in it are not repeated, and interrupted ones are run again.
"""

import argparse
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from rich.progress import track

from benchmarks import records
from benchmarks.compare import latency, plans
from benchmarks.compare.methods import (
    DENSE,
    HEADS,
    INT8,
    LAYERS,
    METHODS,
    PLANS,
    SHARE,
    SPEEDUP,
    Data,
    Method,
    read_data,
    read_method,
)
from benchmarks.compare.outcome import headline
from benchmarks.compare.runs import dense_run, folder_of, read_numbers, train
from benchmarks.measuring import RESULTS, machine

# Bfloat16 is two and a half times as fast as single precision on a CPU that has instructions for it.
COMMON = ("trainer.precision=bf16-mixed", "logger=csv", "callbacks=none")


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
    with ThreadPoolExecutor(options.jobs) as pool:
        begun = [pool.submit(run, job, about, keep=options.keep) for job, about in missing if not options.show]
        for ended in track(as_completed(begun), "Runs", total=len(begun)):
            try:
                row = ended.result()
            except RuntimeError as error:
                failures += 1
                print(error)
                continue
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
            records.append(options.results, row)
            shown = f"{row['data']} {row['method']} {row['num_heads']:.0f} heads {row['speedup']:.2f}x"
            print(f"{shown} seed {row['seed']}: {headline(row):.4f}", flush=True)
    rows = records.read(options.results)
    if any(row["method"].endswith(tuple(f"_{plan}" for plan in PLANS)) for row in rows):
        print("\n".join(plans.lines(rows)))
    else:
        print("\n".join(latency.lines(rows)))
        latency.draw(rows, options.results.with_suffix(".png"))
    if failures:
        raise SystemExit(f"{failures} of {len(missing)} runs failed; run this command again to repeat them.")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", nargs="+", default=[], help="folders with a file for each split, or 'NAME:SETTINGS'")
    parser.add_argument("--methods", nargs="+", help=", ".join(METHODS))
    parser.add_argument("--heads", nargs="+", type=int, default=[18], help="how many heads to keep (default: 18)")
    parser.add_argument("--shares", nargs="+", type=float, default=[0.4, 0.2], help="(default: 0.4 0.2)")
    parser.add_argument("--speedups", nargs="+", type=float, default=[1.5, 2, 3], help="(default: 1.5 2 3)")
    parser.add_argument("--layers", nargs="+", type=int, default=[4, 3, 2], help="(default: 4 3 2)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="(default: 0 1 2)")
    parser.add_argument("--steps", type=int, default=600, help="optimizer steps of every run (default: 600)")
    parser.add_argument("--settings", nargs="*", default=[], help="further settings of train.py, for every run")
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time, of one thread each (default: 1)")
    parser.add_argument(
        "--results",
        type=Path,
        default=RESULTS / "latency.jsonl",
        help="the file of JSON lines; the figure is beside it",
    )
    parser.add_argument("--keep", type=Path, help="a folder that keeps the folders of the runs, 60 MB each")
    parser.add_argument("--show", action="store_true", help="run nothing")
    options = parser.parse_args()
    usual = [name for name in METHODS if not name.endswith((INT8, *(f"_{end}" for end in PLANS)))]
    try:
        options.data = [read_data(text) for text in options.data]
        options.methods = [read_method(text) for text in options.methods or usual]
    except ValueError as error:
        parser.error(str(error))
    if not options.data and not options.show:
        parser.error("name data sets with --data")
    return options


def plan(options: argparse.Namespace) -> Iterator[Job]:
    """List the runs, seed by seed, so that an interrupted comparison has compared all methods."""
    numbers = {None: [None], HEADS: options.heads, SHARE: options.shares}
    numbers |= {SPEEDUP: options.speedups, LAYERS: options.layers}
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
    if any(DENSE in setting for setting in settings):
        dense = str(dense_run(settings) / "compact")
        settings = [setting.replace(DENSE, dense) for setting in settings]
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
