"""Table and figure of accuracy against heads kept."""

import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import records
from benchmarks.compare import figure
from benchmarks.compare.methods import METHODS

Row = Mapping[str, Any]

# Data sets by their names in results.
DATA = {"sick": "SICK", "sst2_sentence": "SST-2", "snli20k": "SNLI", "example": "BBC News"}


def headline(row: Row) -> float:
    """Return the first metric of a run's task on test data."""
    return float(row[f"test/{row['metric']}"])


def lines(rows: Sequence[Row]) -> list[str]:
    """Return the machines of runs, and a table: means over seeds, and the worst and the best seed, most heads first."""
    groups: dict[tuple[str, int | None], dict[tuple[str, int], list[Row]]] = defaultdict(dict)
    for data, steps in sets_of(rows):
        for about, runs in group_rows(rows, data, steps).items():
            groups[about][data, steps] = runs
    lines = []
    for (method, _), by_set in groups.items():
        runs = [row for each in by_set.values() for row in each]
        heads = dict.fromkeys(round(row["num_heads"]) for row in runs)
        lines.append(
            {
                "method": _title(method),
                "heads": " or ".join(map(str, sorted(heads, reverse=True))),
                **{_heading(*about): _spread([100 * headline(row) for row in each]) for about, each in by_set.items()},
                "seeds": seeds_of(runs),
                "_order": (method != "none", -max(heads), -_mean(next(iter(by_set.values())))),
            }
        )
    lines.sort(key=lambda line: line["_order"])
    columns = ["method", "heads", *(_heading(*about) for about in sets_of(rows)), "seeds"]
    return [*machines(rows), "", records.markdown(lines, columns)]


def machines(rows: Sequence[Row]) -> list[str]:
    """Return the machines of runs, a line for each."""
    return sorted(
        {
            f"{row['cpu']}, {row['cores']} cores, {row['threads']} thread(s), torch {row['version/torch']}, "
            f"transformers {row['version/transformers']}."
            for row in rows
        }
    )


def seeds_of(rows: Sequence[Row]) -> str:
    """Return the number of seeds of runs; of several data sets, the least and the largest."""
    counts = Counter((row["data"], row["steps"]) for row in rows).values()
    return " to ".join(map(str, dict.fromkeys((min(counts), max(counts)))))


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw accuracy against heads kept, a panel for each data set: means, and lines from the worst to the best seed."""
    panels = {}
    for data, steps in sets_of(rows):
        methods: dict[str, list[figure.Place]] = defaultdict(list)
        for (method, _), runs in group_rows(rows, data, steps).items():
            values = [100 * headline(row) for row in runs]
            mean, heads = statistics.mean(values), statistics.mean(row["num_heads"] for row in runs)
            methods[method].append((heads, mean, mean - min(values), max(values) - mean))
        panels[data, steps] = methods
    ticks = sorted({int(row["asked"]) for row in rows if row["asked"] is not None})
    metric = rows[0]["metric"]
    figure.draw(panels, path, titles=_title, strong="budget", label="heads kept", metric=metric, ticks=ticks)


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


def _heading(data: str, steps: int) -> str:
    return f"{DATA.get(data, data)}, {steps:,} steps"


def _mean(rows: Sequence[Row]) -> float:
    return statistics.mean(map(headline, rows))


def _spread(values: Sequence[float]) -> str:
    spread = f" ({min(values):.1f} to {max(values):.1f})" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


def _title(method: str) -> str:
    return METHODS[method].title if method in METHODS else method
