"""Results of comparisons: their scores, data sets and seeds."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]

# Data sets by their names in results.
DATA = {"sick": "SICK", "sst2_sentence": "SST-2", "snli20k": "SNLI", "example": "BBC News"}


def headline(row: Row) -> float:
    """Return the first metric of a run's task on test data."""
    return float(row[f"test/{row['metric']}"])


def scores_of(rows: Sequence[Row]) -> dict[tuple[str, int], float]:
    """Return test scores in percent by processor and seed: a seed has another result on another processor."""
    return {(row["cpu"], row["seed"]): 100 * headline(row) for row in rows}


def seeds_of(rows: Sequence[Row]) -> str:
    """Return the number of seeds of runs; of several data sets, the least and the largest."""
    counts = Counter((row["data"], row["steps"]) for row in rows).values()
    return " to ".join(map(str, dict.fromkeys((min(counts), max(counts)))))


def sets_of(rows: Sequence[Row]) -> list[tuple[str, int]]:
    """Return the data sets with their numbers of steps, which make another comparison each; the shortest first."""
    return sorted(dict.fromkeys((row["data"], row["steps"]) for row in rows), key=lambda both: both[1])


def group_rows(rows: Sequence[Row], data: str, steps: int) -> dict[tuple[str, int | None], list[Row]]:
    """Return the runs of each method at each size."""
    groups = defaultdict(list)
    for row in rows:
        if (row["data"], row["steps"]) == (data, steps):
            groups[row["method"], row["asked"]].append(row)
    return groups
