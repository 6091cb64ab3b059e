"""Results of finished runs, read from their folders, and whether they can be compared."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

from gating.errors import InputError
from gating.report.score import Score
from gating.report.tradeoff.decision import Result
from gating.run.folder.contents import METRICS, is_run
from gating.run.folder.state import is_finished
from gating.run.folder.stored_settings import leaves, read_settings_of
from gating.run.sweep.budgets import budget_text, differing, is_dense, of_group, settings_texts
from gating.storage.tables import read_table
from gating.tasks.metrics.numbers import number_metrics
from gating.tasks.metrics.tokens import PERPLEXITY

__all__ = ["Comparison", "read_comparison"]

# Settings of data and trainer that change neither the examples that are evaluated nor their labels.
_SAME_EXAMPLES = ("data.batch_size", "data.eval_batch_size", "data.num_workers", "data.max_length", "data.stride")
_LIMITS = ("trainer.limit_val_batches", "trainer.limit_test_batches")


class _Run(NamedTuple):
    folder: str
    settings: Mapping[str, Any]
    numbers: Mapping[str, Any]


class Comparison(NamedTuple):
    """Runs that are compared.

    Attributes:
        results: Their results.
        score: Their metric.
        axis: ``speedup``, or ``work`` if their latencies were not measured alike.
        notes: Sentences on the comparison.
        problem: Reason for which they cannot be compared; None if they can.
    """

    results: list[Result]
    score: Score
    axis: str
    notes: list[str]
    problem: str | None


def read_comparison(folders: Sequence[Path]) -> Comparison:
    """Return the results of runs.

    Args:
        folders: Folders of finished runs.

    Raises:
        InputError: A folder is not that of a finished run, or its files are damaged.
    """
    runs = [_read(folder) for folder in folders]
    units = {str(run.settings.get("gates", {}).get("units")) for run in runs if not is_dense(run.settings)}
    settings = {
        False: differing([run.settings for run in runs if not is_dense(run.settings)]),
        True: differing([run.settings for run in runs if is_dense(run.settings)], besides=()),
    }
    axis, notes = _axis_and_notes(runs)
    base = _common_latency(runs)
    results = [
        _result(
            run,
            budget=budget_text(run.settings, with_units=len(units) > 1),
            settings=settings[is_dense(run.settings)],
            base=base,
        )
        for run in runs
    ]
    return Comparison(results, _score_of(runs[0].numbers), axis, notes, _problem(runs))


def _read(folder: Path) -> _Run:
    if not is_run(folder):
        raise InputError(f"{folder} is not the folder of a run: it has no config.yaml. Give folders of finished runs.")
    if not is_finished(folder):
        raise InputError(f"The run in {folder} is not finished. Finish it: python train.py resume={folder}")
    numbers = read_table(folder / METRICS)
    if not isinstance(numbers.get("metric"), str):
        raise InputError(
            f"{folder / METRICS} does not have the numbers of a run. Leave {folder} out, or train it again."
        )
    return _Run(str(folder), read_settings_of(folder), numbers)


def _result(run: _Run, *, budget: str, settings: Sequence[str], base: float | None) -> Result:
    numbers, name = run.numbers, run.numbers["metric"]
    after, before = _number(numbers, "macs"), _number(numbers, "macs_before")
    if not before > 0:
        after, before = _number(numbers, "num_parameters"), _number(numbers, "num_parameters_before")
    speedup = _number(numbers, "speedup")
    return Result(
        folder=run.folder,
        budget=budget,
        is_dense=is_dense(run.settings),
        group=of_group(run.settings),
        seed=int(run.settings.get("seed", 0)),
        settings=settings_texts(run.settings, settings),
        validation=_number(numbers, f"val/{name}"),
        test=_number(numbers, f"test/{name}"),
        heads=_number(numbers, "num_heads"),
        neurons=_number(numbers, "num_neurons"),
        work=after / before if before > 0 else math.nan,
        speedup=speedup if base is None else base / _number(numbers, "latency_ms_before") * speedup,
        # Of different dense models, only latencies of the same batch are known.
        speedup_short=_number(numbers, "speedup_short") if base is None else math.nan,
    )


def _number(numbers: Mapping[str, Any], name: str) -> float:
    value = numbers.get(name)
    return float(value) if isinstance(value, (int, float)) else math.nan


def _score_of(numbers: Mapping[str, Any]) -> Score:
    """Return the metric of a run; earlier versions stored its name alone."""
    name, stored = numbers["metric"], numbers.get("score")
    if isinstance(stored, Mapping):
        known = {field.name for field in fields(Score)} - {"name"}
        return Score(name, **{key: value for key, value in stored.items() if key in known})
    if name == PERPLEXITY.name:
        return PERPLEXITY
    if name in ("pearson", "spearman", "mse", "mae"):
        return number_metrics([name])[1]
    return Score(name)


def _problem(runs: Sequence[_Run]) -> str | None:
    """Return the reason for which runs cannot be compared; None if they can."""
    tasks = [run.settings["task"].get("_target_") for run in runs]
    metrics = [run.numbers["metric"] for run in runs]
    for name, values in (("tasks", tasks), ("metrics", metrics)):
        if len(set(values)) > 1:
            return f"the runs have different {name}: {_first_of_each(runs, values)}."
    tables = [_evaluated(run) for run in runs]
    for name in sorted(set().union(*tables)):
        values = [f"{name}={table.get(name)}" for table in tables]
        if len(set(values)) > 1:
            return f"the runs have different data, so that their scores cannot tell: {_first_of_each(runs, values)}."
    return None


def _first_of_each(runs: Sequence[_Run], values: Sequence[object]) -> str:
    """Return the different values of some runs, each with the folder of the first run that has it."""
    folders: dict[str, str] = {}
    for run, value in zip(runs, values, strict=True):
        folders.setdefault(str(value), run.folder)
    return ", ".join(f"{value} ({folder})" for value, folder in folders.items())


def _evaluated(run: _Run) -> dict[str, Any]:
    """Return the settings that determine the examples of an evaluation; the seed is compared over all runs."""
    found = {name: value for name, value in leaves({"data": run.settings["data"]}) if not name.endswith(".seed")}
    limits = dict(leaves({"trainer": run.settings["trainer"]}))
    found |= {name: limits.get(name) for name in _LIMITS}
    return {name: value for name, value in found.items() if not name.startswith(_SAME_EXAMPLES)}


def _common_latency(runs: Sequence[_Run]) -> float | None:
    """Return the latency to which speed-ups refer where the dense models differ; None if they are alike."""
    if len({run.numbers.get("num_parameters_before") for run in runs}) == 1:
        return None
    dense = [run for run in runs if is_dense(run.settings)] or list(runs)
    return _number(dense[0].numbers, "latency_ms_before")


def _axis_and_notes(runs: Sequence[_Run]) -> tuple[str, list[str]]:
    notes = []
    measured = [run for run in runs if not math.isnan(_number(run.numbers, "speedup"))]
    places = {(run.numbers.get("machine"), run.numbers.get("threads")) for run in measured}
    if len(measured) < len(runs):
        notes.append("Some runs have no latency, so all are compared by their work.")
    elif len(places) > 1:
        shown = ", ".join(sorted(f"{machine} with {threads} thread(s)" for machine, threads in places))
        notes.append(f"Latencies were measured on different machines ({shown}), so runs are compared by their work.")
    elif _common_latency(runs) is not None:
        notes.append("The runs have different dense models: speed-ups refer to that of the first dense run.")
    seeds: dict[str, set[Any]] = {}
    for run in runs:
        seeds.setdefault(of_group(run.settings), set()).add(run.settings.get("seed"))
    if len({frozenset(of_budget) for of_budget in seeds.values()}) > 1:
        notes.append("Not all budgets have the same seeds: some differences may be those of seeds.")
    axis = "speedup" if len(measured) == len(runs) and len(places) == 1 else "work"
    return axis, [*notes, *(_timed(runs) if axis == "speedup" else [])]


def _timed(runs: Sequence[_Run]) -> list[str]:
    """Return a sentence for each kind of speed-up with the batches that it was measured with."""
    lines = []
    for end, title in (("", "Speed-ups"), ("_short", "Those of a short text")):
        words = [run.numbers.get(f"latency_words{end}") or run.numbers.get(f"latency_batch{end}") for run in runs]
        if shown := sorted({str(one) for one in words if one}):
            lines.append(f"{title} are those of {'; '.join(shown)}.")
    return lines
