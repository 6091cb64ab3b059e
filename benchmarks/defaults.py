"""Effects of the defaults of a run, from runs in which all of them vary at once.

    python -m benchmarks.defaults --sizes "18 heads" "both, 40 %" --data ../shared/data/sick \
        ../shared/data/sst2_sentence ../shared/data/snli20k example:data=bbc
    python -m benchmarks.defaults --show

Six settings have two levels each. Data has eight runs at each size and seed, half of them with either level of every
setting (a fractional factorial design, Box and Hunter 1961): each run counts for all six settings, where a comparison
of one setting with the default would need runs of its own. In every other set of eight all levels are swapped, so that
the effect of a pair of settings is not taken for that of a third one. The teacher is the dense model of the defaults.

A result is a line of a file of JSON lines, runs that are in it are not repeated, and interrupted ones are run again.
"""

import argparse
import statistics
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import records
from benchmarks.compare.__main__ import COMMON, Job, run, run_all
from benchmarks.compare.methods import TEACHER, Data, Method, read_data
from benchmarks.compare.outcome import Row, headline
from benchmarks.compare.paired import Difference, smallest_difference
from benchmarks.measuring import ROOT

__all__ = ["FACTORS", "SIZES", "Factor", "design", "effects", "table"]

RESULTS = ROOT / "benchmarks" / "results" / "defaults.jsonl"


class Factor(NamedTuple):
    """A setting with two levels.

    Attributes:
        title: The change, in tables.
        off: Settings of train.py without the change.
        on: Settings of train.py with the change.
    """

    title: str
    off: tuple[str, ...]
    on: tuple[str, ...]


# The first three have all combinations of levels; the level of each other is the product of two of them.
FACTORS = {
    "teacher": Factor("a dense teacher", (), ("distillation=logits", TEACHER)),
    "late": Factor(
        "descent until 0.9 of the search, not 0.67", ("objective.schedule.end=0.67",), ("objective.schedule.end=0.9",)
    ),
    "recovery": Factor("0.4 of the steps for recovery, not 0.25", ("recovery=0.25",), ("recovery=0.4",)),
    "decay": Factor(
        "weight decay of biases and norms",
        ("optimizer.decay_biases_and_norms=false",),
        ("optimizer.decay_biases_and_norms=true",),
    ),
    "early": Factor(
        "descent from 0.13 on, without waiting for the loss",
        ("objective.schedule.start=null",),
        ("objective.schedule.start=0.13",),
    ),
    "last": Factor("the last weights, not the best ones", ("recovery_keep=best",), ("recovery_keep=last",)),
}
SIZES = {
    "18 heads": ("objective.num_heads=18",),
    "both, 40 %": ("gates.units=[heads,neurons]", "objective.keep=0.4"),
    "both, 10 %": ("gates.units=[heads,neurons]", "objective.keep=0.1"),
}


def main() -> None:
    """Run missing jobs and print the table of effects."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.defaults", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", nargs="+", default=[], help="folders with a file for each split, or 'NAME:SETTINGS'")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, default=600, help="optimizer steps of every run (default: 600)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time, one CPU thread each (default: 1)")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--show", action="store_true", help="run nothing")
    options = parser.parse_args()
    data = [read_data(text) for text in options.data]
    done = {_key(row) for row in records.read(options.results)}
    jobs = [job for job in plan(data, options.sizes, options.seeds, options.steps) if _key(job[1]) not in done]
    if not options.show:
        run_all([partial(_run, *job) for job in jobs], results=options.results, jobs=options.jobs)
    print(table(records.read(options.results)))


def _run(job: Job, about: dict[str, Any]) -> dict[str, Any]:
    plain = [*job.data.settings, *COMMON, f"trainer.max_steps={about['steps']}", f"seed={job.seed}"]
    return run(job, about, teacher=plain)


def design() -> list[dict[str, bool]]:
    """Return the levels of all settings in each of eight runs; true is the change.

    Example:
        >>> [sum(levels[name] for levels in design()) for name in FACTORS]
        [4, 4, 4, 4, 4, 4]
    """
    runs = []
    for signs in product((-1, 1), repeat=3):
        a, b, c = signs
        levels = (a, b, c, a * b, a * c, b * c)
        runs.append({name: level > 0 for name, level in zip(FACTORS, levels, strict=True)})
    return runs


def plan(
    data: Sequence[Data], sizes: Sequence[str], seeds: Sequence[int], steps: int
) -> Iterator[tuple[Job, dict[str, Any]]]:
    """List the runs and the facts that identify them, set by set of eight."""
    for seed, size, each in product(seeds, sizes, data):
        is_swapped = (seed + list(SIZES).index(size) + data.index(each)) % 2 == 1
        for number, levels in enumerate(design()):
            chosen = {name: level != is_swapped for name, level in levels.items()}
            settings = [
                setting
                for name, level in chosen.items()
                for setting in (FACTORS[name].on if level else FACTORS[name].off)
            ]
            name = f"run {number}{' swapped' if is_swapped else ''}"
            method = Method(name, (*SIZES[size], *settings), name, ask=None)
            about = {
                "data": each.name,
                "method": name,
                "asked": None,
                "size": size,
                "levels": chosen,
                "seed": seed,
                "steps": steps,
                "settings": [*COMMON, f"trainer.max_steps={steps}", *method.settings],
            }
            yield Job(each, method, None, seed), about


def effects(rows: Sequence[Row]) -> dict[tuple[str, str], dict[str, Difference]]:
    """Return the effects of each setting in points, by size and data: a value for each complete set of eight runs."""
    found = {}
    for place in product(SIZES, dict.fromkeys(row["data"] for row in rows)):
        sets = _complete_sets([row for row in rows if (row["size"], row["data"]) == place])
        if sets:
            found[place] = {name: Difference(tuple(_effect(runs, name) for runs in sets)) for name in FACTORS}
    return found


def _complete_sets(rows: Sequence[Row]) -> list[list[Row]]:
    sets: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        sets.setdefault((row["seed"], row["steps"]), []).append(row)
    return [runs for runs in sets.values() if len(runs) == len(design())]


def _effect(runs: Sequence[Row], name: str) -> float:
    on, off = ([100 * headline(row) for row in runs if row["levels"][name] is level] for level in (True, False))
    return statistics.mean(on) - statistics.mean(off)


def table(rows: Sequence[Row]) -> str:
    """Return a Markdown table of the effects in points, and the smallest mean that can be told from chance."""
    found = effects(rows)
    places = {place: f"{place[1]}, {place[0]}" for place in found}
    joined = {
        name: Difference(tuple(value for each in found.values() for value in each[name].values)) for name in FACTORS
    }
    lines = [
        {"change": factor.title}
        | {title: str(found[place][name]) for place, title in places.items()}
        | {"mean": str(joined[name]) if found else None}
        for name, factor in FACTORS.items()
    ]
    told = smallest_difference(list(joined.values())) if found else {}
    chance = [f"Smaller means of all sets can be chance: {points:.1f} points." for points in told.values()]
    return "\n\n".join([records.markdown(lines, ["change", *places.values(), "mean"]), *chance])


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row["data"], row["seed"], tuple(row["settings"])


if __name__ == "__main__":
    main()
