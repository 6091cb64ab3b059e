"""Differences between methods, paired by seed, and means with their standard errors."""

import math
import statistics
from collections.abc import Collection, Mapping
from typing import Any


def differences(first: Mapping[Any, float], second: Mapping[Any, float]) -> list[float]:
    """Return the differences of two methods, whose values are by seed, for each seed that both have.

    Example:
        >>> differences({0: 85.0, 1: 86.5, 2: 84.0}, {0: 84.5, 1: 85.0})
        [0.5, 1.5]
    """
    return [first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())]


def standard_error(values: Collection[float]) -> float:
    """Return the standard error of the mean of two values or more."""
    return statistics.stdev(values) / math.sqrt(len(values))


def show_mean(values: Collection[float], shown: str = "+.2f") -> str:
    """Return the mean with its standard error; one value has none.

    Example:
        >>> show_mean([0.5, 1.5])
        '+1.00 ± 0.50'
    """
    error = f" ± {standard_error(values):{shown.lstrip('+')}}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{shown}}{error}"
