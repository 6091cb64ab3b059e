"""Differences between methods, paired by seed."""

import math
import statistics
from collections.abc import Mapping
from typing import Any, NamedTuple


class Difference(NamedTuple):
    """Differences of two methods over seeds.

    Attributes:
        values: First minus second, for each seed that both have.
    """

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return statistics.mean(self.values)

    @property
    def error(self) -> float:
        """Standard error of the mean; NaN with one seed."""
        seeds = len(self.values)
        return statistics.stdev(self.values) / math.sqrt(seeds) if seeds > 1 else math.nan

    def __str__(self) -> str:
        """Return mean and standard error, such as ``+0.52 ± 0.21``."""
        return f"{self.mean:+.2f}" + ("" if math.isnan(self.error) else f" ± {self.error:.2f}")


def difference(first: Mapping[Any, float], second: Mapping[Any, float]) -> Difference | None:
    """Return the differences of two methods, whose values are by seed, over the seeds that both have; None without any.

    Example:
        >>> str(difference({0: 85.0, 1: 86.5, 2: 84.0}, {0: 84.5, 1: 85.0}))
        '+1.00 ± 0.50'
    """
    values = tuple(first[seed] - second[seed] for seed in sorted(first.keys() & second.keys()))
    return Difference(values) if values else None
