"""The number that a run returns to the sweeper that has started it."""

import json
import re
from pathlib import Path

from gating.errors import InputError
from gating.report.summary import NUMBERS, STAGES

__all__ = ["check_optimized", "optimized_value"]

_NAME = re.compile(rf"((({'|'.join(STAGES)})/)?(val|test)|num_heads|num_heads_before|seconds)/\w+")


def check_optimized(name: str | None) -> None:
    """Make sure that a name can be in ``metrics.json``; whether the task has such a metric is known at the end.

    Args:
        name: The setting ``optimized_metric``; None for the task's validation score.

    Raises:
        ValueError: It cannot be there.
    """
    if name is not None and name not in NUMBERS and not _NAME.fullmatch(name):
        raise InputError(
            f"optimized_metric={name} is not a name in metrics.json: give val/METRIC or test/METRIC of the compact "
            f"model, STAGE/val/METRIC with {', '.join(STAGES[:-1])} or {STAGES[-1]} as the stage, or one of "
            f"{', '.join(NUMBERS)}."
        )


def optimized_value(folder: Path, name: str | None) -> float | None:
    """Return a number of a finished run.

    Args:
        folder: The run's folder.
        name: Its name in ``metrics.json``; None for the task's validation score.

    Returns:
        The number; None where it has no value, or where the run has not been validated.

    Raises:
        ValueError: It is not there.
    """
    path = folder / "metrics.json"
    found = json.loads(path.read_text(encoding="utf-8"))
    numbers = {key: value for key, value in found.items() if value is None or type(value) in (int, float)}
    if name is not None and name not in numbers:
        raise InputError(
            f"optimized_metric={name} is not in {path} of the finished run, which has {', '.join(sorted(numbers))}. "
            f"Give one of these with resume={folder}."
        )
    return numbers.get(name or f"val/{found.get('metric')}")
