"""The number that a run returns to an optimizing sweeper."""

import re
from pathlib import Path

from gating.errors import InputError
from gating.report.summary import NUMBERS, Stage
from gating.run.folder.contents import METRICS
from gating.storage.tables import finite_number, read_table

__all__ = ["check_optimized", "optimized_value"]

_NAME = re.compile(rf"((({'|'.join(Stage)})/)?(val|test)|num_heads|num_heads_before|seconds)/\w+")


def check_optimized(name: str | None) -> None:
    """Check that a name can be in ``metrics.json``; the metrics of a task are known only at the end of a run.

    Args:
        name: The setting ``optimized_metric``; None for the task's validation score.

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


def optimized_value(folder: Path, name: str | None) -> float | None:
    """Return a number of a finished run.

    Args:
        folder: The run's folder.
        name: Its name in ``metrics.json``; None for the task's validation score.

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
    numbers = {key: finite_number(value) for key, value in found.items() if _is_number(value)}
    if name is not None and name not in numbers:
        raise InputError(
            f"optimized_metric={name} is not in {path} of the finished run, which has {', '.join(sorted(numbers))}. "
            f"Give one of these with resume={folder}."
        )
    return numbers.get(name or f"val/{found['metric']}")


def _is_number(value: object) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))
