"""The number that a run returns to an optimizing sweeper."""

import re
from collections.abc import Mapping
from pathlib import Path

from gating.errors import InputError, nearest_name
from gating.report.summary import NUMBERS, Stage
from gating.run.folder.contents import METRICS
from gating.storage.tables import finite_number, read_table
from gating.tasks.base import Prepared

__all__ = ["check_measured", "check_optimized", "optimized_value"]

_METRIC = re.compile(rf"(?P<stage>({'|'.join(Stage)})/)?(?P<split>val|test)/(?P<metric>\w+)")
_NAME = re.compile(rf"({_METRIC.pattern})|(num_heads|num_heads_before|seconds)/\w+")


def check_optimized(name: str | None) -> None:
    """Check that a name can be in ``metrics.json``; the metrics of a task are known only at the end of a run.

    Raises:
        InputError: The name cannot be there.
    """
    if name is not None and name not in NUMBERS and not _NAME.fullmatch(name):
        *stages, last = Stage
        raise InputError(
            f"optimized_metric={name} is not a name in metrics.json: give val/METRIC or test/METRIC of the compact "
            f"model, STAGE/val/METRIC with {', '.join(stages)} or {last} as the stage, or one of "
            f"{', '.join(NUMBERS)}."
        )


def check_measured(name: str | None, prepared: Prepared, *, num_evaluated: Mapping[str, int]) -> None:
    """Check that a run will measure the metric that it returns, before it trains.

    Raises:
        InputError: There is no such metric, or its split is not evaluated.
    """
    found = _METRIC.fullmatch(name or "")
    metrics = list(prepared.all_metrics.keys(keep_base=True))
    if found is None or any(score and score.name not in metrics for score in (prepared.score, prepared.final_score)):
        return  # Some metrics have several values, whose names are known after the first validation.
    splits = [short for short, split in (("val", "validation"), ("test", "test")) if num_evaluated.get(split)]
    known = [f"{split}/{metric}" for split in splits for metric in metrics]
    measured = f"{found['split']}/{found['metric']}"
    if measured not in known:
        hint = nearest_name(measured, known, prefix=found["stage"] or "") if known else "It evaluates nothing."
        raise InputError(f"optimized_metric={name} is not measured by this run. {hint}")


def optimized_value(folder: Path, name: str | None) -> float | None:
    """Return a number of a finished run by its name in ``metrics.json``; by default the task's validation score.

    Returns:
        The number; None if it has no value, or the run had no validation.

    Raises:
        InputError: ``metrics.json`` has no such number.
    """
    path = folder / METRICS
    found = read_table(path)
    if not isinstance(found.get("metric"), str):
        raise InputError(f"{path} does not have the numbers of a run: train it again, with overwrite=true.")
    # None stands for numbers that are not finite, too.
    kinds = (int, float, type(None))
    numbers = {key: finite_number(value) for key, value in found.items() if type(value) in kinds}
    if name is not None and name not in numbers:
        raise InputError(
            f"optimized_metric={name} is not in {path} of the finished run, which has {', '.join(sorted(numbers))}. "
            f"Give one of these with resume={folder}."
        )
    return numbers.get(name or f"val/{found['metric']}")
