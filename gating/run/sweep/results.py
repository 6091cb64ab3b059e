"""Results of finished runs, read from their folders, and the choice among them."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gating.errors import InputError
from gating.report.score import Score
from gating.run.folder import METRICS, is_finished, is_run, stored_settings
from gating.run.settings import is_dense
from gating.run.sweep.budgets import budget_text, differing, of_group, settings_texts, units_text
from gating.run.sweep.comparable import FinishedRun, find_problem, seed_of
from gating.run.sweep.tradeoff.decision import Result, Tradeoff, decide
from gating.storage.files import finite_number, read_table

__all__ = ["compare", "why_no_result"]


def compare(
    folders: Sequence[Path], *, max_drop: float, search: str | None = None, notes: Sequence[str] = ()
) -> Tradeoff:
    """Return the choice among the runs in some folders.

    Args:
        folders: The folders.
        max_drop: Largest loss of validation score that is accepted, in the shown unit of the score.
        search: Sentence on the best trial of an optimizing sweeper.
        notes: Further sentences on the comparison.

    Raises:
        InputError: A folder is not that of a finished run, or its files are damaged.
    """
    runs = [_read(folder) for folder in folders]
    units = {units_text(run.settings) for run in runs if not is_dense(run.settings)}
    settings = {
        False: differing([run.settings for run in runs if not is_dense(run.settings)]),
        True: differing([run.settings for run in runs if is_dense(run.settings)], besides=()),
    }
    axis, found = _axis_and_notes(runs)
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
    score, problem = _score_of(runs[0].numbers), find_problem(runs)
    return decide(results, score, max_drop=max_drop, axis=axis, notes=[*notes, *found], problem=problem, search=search)


def why_no_result(folder: Path) -> str | None:
    """Return why a job of a sweep has no results that can be read; None if it has."""
    if not is_run(folder):
        return "its folder is gone, or has no config.yaml any more"
    if not is_finished(folder):
        return "not finished"
    try:
        _read(folder)
    except InputError as error:
        return str(error)
    return None


def _read(folder: Path) -> FinishedRun:
    if not is_run(folder):
        raise InputError(f"{folder} is not the folder of a run: it has no config.yaml. Give folders of finished runs.")
    if not is_finished(folder):
        raise InputError(f"The run in {folder} is not finished. Finish it: python train.py resume={folder}")
    numbers = read_table(folder / METRICS)
    if not isinstance(numbers.get("metric"), str):
        raise InputError(
            f"{folder / METRICS} does not have the numbers of a run. Leave {folder} out, or train it again."
        )
    score = numbers.get("score")
    scale = score.get("scale", 1) if isinstance(score, Mapping) else 1
    if (finite_number(scale) or 0) <= 0:
        raise InputError(
            f"{folder / METRICS} has score.scale={scale}, which is no factor of a score. Leave {folder} out, or train "
            "it again."
        )
    return FinishedRun(str(folder), stored_settings(folder), numbers)


def _result(run: FinishedRun, *, budget: str, settings: Sequence[str], base: float | None) -> Result:
    numbers, name = run.numbers, run.numbers["metric"]
    after, before = _positive(numbers, "macs"), _positive(numbers, "macs_before")
    if math.isnan(after / before):
        after, before = _positive(numbers, "num_parameters"), _positive(numbers, "num_parameters_before")
    speedup = _positive(numbers, "speedup")
    baseline = _number(numbers, f"baseline/val/{name}")
    targets = _positive(numbers, "num_targets/val")
    return Result(
        folder=run.folder,
        budget=budget,
        is_dense=is_dense(run.settings),
        group=of_group(run.settings),
        seed=seed_of(run),
        settings=settings_texts(run.settings, settings),
        # Different dense models share only latencies of the same batch.
        speedup_short=_positive(numbers, "speedup_short") if base is None else math.nan,
        validation=_measured(numbers, f"val/{name}"),
        test=_measured(numbers, f"test/{name}"),
        heads=_positive(numbers, "num_heads"),
        neurons=_positive(numbers, "num_neurons"),
        work=after / before,
        speedup=speedup if base is None else base / _positive(numbers, "latency_ms_before") * speedup,
        baseline=str(numbers.get("baseline")),
        baseline_validation=baseline,
        baseline_test=_number(numbers, f"baseline/test/{name}"),
        num_targets=1 if math.isnan(targets) else int(targets),
        warnings=_sentences(numbers.get("warnings")),
    )


def _number(numbers: Mapping[str, Any], name: str) -> float:
    """Return a number; NaN for a value that is missing or not a finite number."""
    value = finite_number(numbers.get(name))
    return math.nan if value is None else float(value)


def _positive(numbers: Mapping[str, Any], name: str) -> float:
    """Return a size or time; NaN for a value that cannot be one."""
    value = _number(numbers, name)
    return value if value > 0 else math.nan


def _measured(numbers: Mapping[str, Any], name: str) -> float:
    """Return a score; NaN for a missing one, infinity for one that is not a finite number."""
    value = _number(numbers, name)
    return math.inf if math.isnan(value) and name in numbers else value


def _sentences(value: object) -> tuple[str, ...]:
    return tuple(line for line in value if isinstance(line, str)) if isinstance(value, list) else ()


def _score_of(numbers: Mapping[str, Any]) -> Score:
    """Return the metric of a run; the default format where its record is damaged."""
    name, stored = numbers["metric"], numbers.get("score")
    if not isinstance(stored, Mapping):
        return Score(name)
    unit = stored.get("unit")
    return Score(
        name,
        scale=stored.get("scale", 100),
        unit=unit if isinstance(unit, str) else "",
        higher_is_better=stored.get("higher_is_better") is not False,
    )


def _common_latency(runs: Sequence[FinishedRun]) -> float | None:
    """Return the latency to which speed-ups refer where the dense models differ; None if they are alike."""
    if len({str(run.numbers.get("num_parameters_before")) for run in runs}) == 1:
        return None
    dense = [run for run in runs if is_dense(run.settings)] or list(runs)
    return _positive(dense[0].numbers, "latency_ms_before")


def _axis_and_notes(runs: Sequence[FinishedRun]) -> tuple[str, list[str]]:
    notes = []
    measured = [run for run in runs if not math.isnan(_positive(run.numbers, "speedup"))]
    places = {(str(run.numbers.get("machine")), str(run.numbers.get("threads"))) for run in measured}
    if len(measured) < len(runs):
        notes.append("Some runs have no latency, so all are compared by their work.")
    elif len(places) > 1:
        shown = ", ".join(sorted(f"{machine} with {threads} thread(s)" for machine, threads in places))
        notes.append(f"Latencies were measured on different machines ({shown}), so runs are compared by their work.")
    elif _common_latency(runs) is not None:
        notes.append("The runs have different dense models: speed-ups refer to that of the first dense run.")
    axis = "speedup" if len(measured) == len(runs) and len(places) == 1 else "work"
    return axis, [*notes, *_notes_on_seeds(runs), *(_timed(runs) if axis == "speedup" else [])]


def _timed(runs: Sequence[FinishedRun]) -> list[str]:
    """Return a sentence for each kind of speed-up with the batches that it was measured with."""
    lines = []
    for end, title in (("", "Speed-ups"), ("_short", "Those of a short text")):
        words = [run.numbers.get(f"latency_words{end}") or run.numbers.get(f"latency_batch{end}") for run in runs]
        if shown := sorted({str(one) for one in words if one}):
            lines.append(f"{title} are those of {'; '.join(shown)}.")
    return lines


def _notes_on_seeds(runs: Sequence[FinishedRun]) -> list[str]:
    """Return sentences on seeds that differ between budgets, that occur more than once, and that are no seeds."""
    groups: dict[str, dict[int | None, list[str]]] = {}
    for run in runs:
        groups.setdefault(of_group(run.settings), {}).setdefault(seed_of(run), []).append(run.folder)
    notes = []
    if len({frozenset(seeds) for seeds in groups.values()}) > 1:
        notes.append("Not all budgets have the same seeds: some differences may be those of seeds.")
    repeated = [folders for seeds in groups.values() for folders in seeds.values() if len(folders) > 1]
    notes += [
        f"{', '.join(folders[:-1])} and {folders[-1]} have the same settings and the same seed: together they count as "
        "one seed."
        for folders in repeated
    ]
    odd = [run for run in runs if seed_of(run) is None]
    return notes + [f"{run.folder} has seed={run.settings['seed']}, which is no whole number." for run in odd]
