"""The result of a finished run: the numbers in its ``metrics.json``, and the one that a sweep optimizes."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gating.errors import InputError, nearest_name
from gating.run.folder import METRICS
from gating.storage.files import finite_number, read_table


@dataclass(frozen=True)
class Result:
    """The numbers of a finished run.

    Attributes:
        folder: Folder of the run.
        metric: Name of the task's score.
        numbers: The numbers by their names; None for one that is not finite.
    """

    folder: Path
    metric: str
    numbers: Mapping[str, float | None]

    @classmethod
    def read(cls, folder: Path) -> "Result":
        """Return the result in the folder of a run.

        Raises:
            InputError: ``metrics.json`` does not have the numbers of a run.
        """
        found = read_numbers(folder)
        kinds = (int, float, type(None))
        numbers = {name: finite_number(value) for name, value in found.items() if type(value) in kinds}
        return cls(folder, found["metric"], numbers)

    def value(self, name: str | None) -> float | None:
        """Return a number by its name; by default the task's validation score, None without a validation.

        Raises:
            InputError: There is no such number.
        """
        if name is not None and name not in self.numbers:
            hint = nearest_name(name, sorted(self.numbers))
            raise InputError(f"optimized_metric={name} is not in {self.folder / METRICS}. {hint}")
        return self.numbers.get(name or f"val/{self.metric}")


def read_numbers(folder: Path) -> dict[str, Any]:
    """Return ``metrics.json`` of a run's folder.

    Raises:
        InputError: It does not have the numbers of a run.
    """
    found = read_table(folder / METRICS)
    if not isinstance(found.get("metric"), str):
        raise InputError(f"{folder / METRICS} does not have the numbers of a run: leave it out, or train it again.")
    return found
