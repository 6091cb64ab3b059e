"""Finished runs, read from their folders: their numbers, their names, and the conditions of a comparison."""

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from gating.errors import InputError
from gating.run.folder import is_finished, is_run, read_numbers, stored_settings
from gating.run.inputs import read_inputs
from gating.run.settings import has_effect, is_dense, shown_value
from gating.run.sweep.jobs import jobs_of, own_overrides
from gating.storage.files import finite_number
from gating.storage.identity import leaves

# Settings of a budget, of which an objective takes one.
_BUDGETS = tuple(f"objective.{name}" for name in ("num_heads", "num_neurons", "keep", "speedup", "price"))
# Settings that decide how long a run trains, and how much of the data it is evaluated on.
_OF_TRAINER = ("max_steps", "max_epochs", "limit_train_batches", "limit_val_batches", "limit_test_batches")
_SPLITS = ("train", "validation", "test")
# Metrics that compare with the embeddings of a dense model.
_OF_TEACHER = ("agreement", "cosine")


class FinishedRun(NamedTuple):
    """A finished run: its folder, its settings and its numbers."""

    folder: str
    settings: Mapping[str, Any]
    numbers: Mapping[str, Any]

    @property
    def is_dense(self) -> bool:
        """Whether the run has no objective."""
        return is_dense(self.settings)

    def number(self, name: str) -> float:
        """Return a number of ``metrics.json``; NaN if it is missing or not finite."""
        value = finite_number(self.numbers.get(name))
        return math.nan if value is None else float(value)

    @property
    def group(self) -> str:
        """A text that is equal for runs that differ in nothing but their seed."""
        return json.dumps(sorted(_effective(self.settings, "results").items()), default=str)


def read_run(folder: Path) -> FinishedRun:
    """Return a finished run; ``InputError`` if there is none, or its files are damaged."""
    if not is_run(folder) or not is_finished(folder):
        raise InputError(f"{folder} has no finished run. If one has begun there: python train.py resume={folder}")
    return FinishedRun(str(folder), stored_settings(folder), read_numbers(folder))


def read_runs(folder: Path) -> tuple[list[FinishedRun], dict[str, str]]:
    """Return the finished runs of a sweep or of any folder of runs, and the other ones with the reasons."""
    found = [
        (f"{folder / job.folder} ({' '.join(own_overrides(folder, job.overrides))})", folder / job.folder, job.reason)
        for job in jobs_of(folder)
    ]
    if not found and is_run(folder):
        return [read_run(folder)], {}
    runs, failed = [], {}
    for name, place, reason in found or [(str(path), path, None) for path in sorted(folder.glob("*")) if is_run(path)]:
        try:
            if reason is not None:
                raise InputError(reason)
            runs.append(read_run(place))
        except InputError as error:
            failed[name] = str(error)
    return runs, failed


def names_of(runs: Sequence[FinishedRun]) -> dict[str, str]:
    """Return a name for each group of runs: the budget, and other settings in which dense runs, or others, differ."""
    names = {}
    for dense in (False, True):
        tables = {run.group: _effective(run.settings, "results") for run in runs if run.is_dense == dense}
        values = {name: {str(table.get(name)) for table in tables.values()} for name in set().union(*tables.values())}
        unlike = [name for name in sorted(values) if len(values[name]) > 1]
        # Where a group's object differs, its other settings differ with it.
        objects = [name for name in unlike if name.rpartition(".")[2] in ("_target_", "name")]
        parts = tuple(f"{name.rpartition('.')[0]}." for name in objects)
        for group, own in tables.items():
            shown = [] if dense else [name for name in own if name.startswith(_BUDGETS)]
            # A limit of training that is -1 is none.
            others = [name for name in unlike if own.get(name, -1) != -1 and name not in shown]
            shown += [name for name in others if name in objects or not name.startswith(parts)]
            texts = [f"{name.removeprefix('objective.')}={own[name]}" for name in shown]
            names[group] = " ".join(["dense", *texts] if dense else texts) or "default budget"
    return names


def conditions_of(runs: Sequence[FinishedRun]) -> dict[str, Any]:
    """Return the conditions of scores of runs with several seeds: steps, dense model, metric, data and its counts."""
    first = runs[0]
    limits = {name: first.settings["trainer"].get(name) for name in _OF_TRAINER}
    found = _effective({"trainer": limits, "data": first.settings["data"]}, "results", "examples")
    if limits["max_steps"] == -1:
        # These decide on the steps of an epoch.
        found["data.batch_size"] = first.settings["data"].get("batch_size")
        found["trainer.accumulate_grad_batches"] = first.settings["trainer"].get("accumulate_grad_batches")
    metric, task = first.numbers["metric"], first.settings["task"]
    if metric in _OF_TEACHER:
        found["task.teacher"] = task.get("teacher")
    if isinstance(task.get("metrics"), Mapping):
        found[f"task.metrics.{metric}"] = task["metrics"].get(metric)
    found["num_parameters_before"] = first.numbers.get("num_parameters_before")
    recorded = defaultdict[str, set[str]](set)
    for run in runs:
        for name, value in _evaluated(run).items():
            recorded[name].add(json.dumps(value))
    return found | {name: ", ".join(sorted(texts)) for name, texts in recorded.items()}


def _evaluated(run: FinishedRun) -> dict[str, Any]:
    """Return digests of the examples of each split, the seed if they are not recorded, and the evaluated counts."""
    counts = [f"{name}/{split}" for name in ("num_examples", "num_targets") for split in ("val", "test")]
    # Files of one name in several folders, such as folds, may be other data.
    data, settings = read_inputs(Path(run.folder))["examples"], run.settings
    examples = {f"{split} examples": data.get(split) for split in _SPLITS}
    drawn = examples if data else {"seed": settings["data"].get("seed", settings["seed"])}
    return drawn | {name: run.numbers.get(name) for name in counts}


def _effective(settings: Mapping[str, Any], *on: Literal["results", "dense run", "examples"]) -> dict[str, Any]:
    """Return the settings of an effect, by dotted name, without seeds and those without a value."""
    return {
        name: shown_value(name, value)
        for name, value in leaves(settings)
        if value is not None and not name.endswith("seed") and all(has_effect(name, on=one) for one in on)
    }
