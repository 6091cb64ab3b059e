"""Whether runs can be compared, by their tasks, metrics and data, and the dense job that a job is compared with."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from gating.errors import InputError
from gating.run.folder import METRICS, is_finished, stored_settings
from gating.run.inputs import read_inputs
from gating.run.settings import has_effect, is_dense, shown_value
from gating.run.sweep.records import jobs_of
from gating.storage.files import finite_number, read_table
from gating.storage.identity import NUM_ROWS
from gating.storage.same_settings import leaves
from gating.tasks.metrics.tokens import PERPLEXITY

__all__ = ["FinishedRun", "dense_metrics", "find_problem", "seed_of"]


class FinishedRun(NamedTuple):
    """A finished run: its folder, its settings and its numbers."""

    folder: str
    settings: Mapping[str, Any]
    numbers: Mapping[str, Any]


def find_problem(runs: Sequence[FinishedRun]) -> str | None:
    """Return the reason for which runs cannot be compared; None if they can."""
    tasks = [str(run.settings["task"].get("_target_")) for run in runs]
    metrics = [run.numbers["metric"] for run in runs]
    for name, values in (("tasks", tasks), ("metrics", metrics)):
        if len(set(values)) > 1:
            return f"the runs have different {name}: {_first_of_each(runs, values)}."
    tables = [_evaluated(run) for run in runs]
    for name in sorted(set().union(*tables)):
        values = [f"{name}={table.get(name)}" for table in tables]
        if len(set(values)) > 1:
            return f"the runs have different data, so that their scores cannot tell: {_first_of_each(runs, values)}."
    return _differing_count(runs)


def _differing_count(runs: Sequence[FinishedRun]) -> str | None:
    """Return a number of examples or targets in which runs of one seed differ, as a reason not to compare them.

    A limit of batches is one of examples, which their size changes. Other seeds may draw texts of other lengths.
    """
    names = [f"num_examples/{split}" for split in ("val", "test")]
    if runs[0].numbers["metric"] == PERPLEXITY.name:
        # A mean over tokens, of which other tokenizers make more or fewer of the same text.
        names += [f"num_targets/{split}" for split in ("val", "test")]
    for name in names:
        for seed in {seed_of(run): None for run in runs}:
            known = [run for run in runs if seed_of(run) == seed and finite_number(run.numbers.get(name)) is not None]
            values = [f"{name}={run.numbers[name]}" for run in known]
            if len(set(values)) > 1:
                shown = _first_of_each(known, values)
                return f"the runs were evaluated on different data, so that their scores cannot tell: {shown}."
    return None


def _first_of_each(runs: Sequence[FinishedRun], values: Sequence[object]) -> str:
    """Return the different values of some runs, each with the folder of the first run that has it."""
    folders: dict[str, str] = {}
    for run, value in zip(runs, values, strict=True):
        folders.setdefault(str(value), run.folder)
    return ", ".join(f"{value} ({folder})" for value, folder in folders.items())


def _evaluated(run: FinishedRun) -> dict[str, Any]:
    """Return the settings that determine the examples of an evaluation; the seed is compared over all runs.

    Files are compared by their examples and labels, not by their places. Texts are stored as tokens, which differ
    between models.
    """
    limits = {name: run.settings["trainer"].get(name) for name in ("limit_val_batches", "limit_test_batches")}
    found = {
        name: shown_value(name, value)
        for name, value in leaves({"data": run.settings["data"], "trainer": limits})
        if not name.endswith(".seed") and has_effect(name, on="results") and has_effect(name, on="examples")
    }
    for split, digests in _data_of(run).items():
        found |= {f"{split} examples": digests.get(NUM_ROWS), f"{split} labels": digests.get("labels")}
    return found


def _data_of(run: FinishedRun) -> Mapping[str, Any]:
    """Return the digests of the validation and test data of a run; none if they are not recorded."""
    try:
        inputs = read_inputs(Path(run.folder)) or {}
    except InputError:
        return {}
    return {split: found for split, found in inputs.get("data", {}).items() if split in ("validation", "test")}


def seed_of(run: FinishedRun) -> int | None:
    """Return the seed of a run; None if it is no whole number."""
    seed = run.settings.get("seed", 0)
    return seed if type(seed) is int else None


def dense_metrics(sweep: Path, folder: Path) -> dict[str, float]:
    """Return the metrics of the dense job with the seed and the other settings of a job, such as ``val/accuracy``.

    Returns:
        The metrics; empty if there is no such job, or it is not finished, as where jobs run side by side.
    """
    wanted = _of_training(stored_settings(folder))
    for place in (sweep / job.folder for job in jobs_of(sweep) if job.reason is None):
        # Damaged settings of another job are no error of this one.
        with suppress(InputError):
            if is_finished(place) and is_dense(stored := stored_settings(place)) and _of_training(stored) == wanted:
                numbers = {name: finite_number(value) for name, value in read_table(place / METRICS).items()}
                measured = {name: value for name, value in numbers.items() if value is not None}
                return {name: value for name, value in measured.items() if name.startswith(("val/", "test/"))}
    return {}


def _of_training(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a run that change the results of a dense one, by dotted name."""
    changing = [(name, value) for name, value in leaves(settings) if not name.startswith("latency.")]
    return {
        name: value for name, value in changing if has_effect(name, on="results") and has_effect(name, on="dense run")
    }
