"""Differences between methods, paired by seed."""

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

# Quantile of the normal distribution: differences that are zero exceed the bound in 5 % of comparisons.
_NORMAL = statistics.NormalDist().inv_cdf(0.975)


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


def difference(first: Mapping[int, float], second: Mapping[int, float]) -> Difference | None:
    """Return the differences of two methods, whose values are by seed, over the seeds that both have; None without any.

    Example:
        >>> str(difference({0: 85.0, 1: 86.5, 2: 84.0}, {0: 84.5, 1: 85.0}))
        '+1.00 ± 0.50'
    """
    values = tuple(first[seed] - second[seed] for seed in sorted(first.keys() & second.keys()))
    return Difference(values) if values else None


def smallest_difference(differences: Sequence[Difference]) -> dict[int, float]:
    """Return the smallest difference that can be told from zero, for each number of seeds.

    The standard deviation of a paired difference is pooled over all pairs of methods; a difference is told from zero
    if its two-sided t-test has p < 0.05.

    Example:
        >>> pairs = [Difference((0.5, 0.1, 0.3)), Difference((-0.2, 0.4, 0.1))]
        >>> {seeds: round(points, 2) for seeds, points in smallest_difference(pairs).items()}
        {3: 0.41}
    """
    several = [each for each in differences if len(each.values) > 1]
    freedom = sum(len(each.values) - 1 for each in several)
    if not freedom:
        return {}
    spread = math.sqrt(sum(statistics.variance(each.values) * (len(each.values) - 1) for each in several) / freedom)
    counts = Counter(len(each.values) for each in several)
    return {seeds: _quantile(freedom) * spread / math.sqrt(seeds) for seeds in sorted(counts, reverse=True)}


def _quantile(freedom: int) -> float:
    """Return the 97.5 % quantile of Student's distribution, by the Cornish-Fisher expansion."""
    z = _NORMAL
    second = (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
    return z + (z**3 + z) / (4 * freedom) + second + third
