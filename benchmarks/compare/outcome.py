"""Table and figure of accuracy against heads kept."""

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import records
from benchmarks.compare import figure
from benchmarks.compare.methods import METHODS

Row = Mapping[str, Any]


def headline(row: Row) -> float:
    """Return the first metric of a run's task on test data."""
    return float(row[f"test/{row['metric']}"])


def lines(rows: Sequence[Row]) -> list[str]:
    """Return the conditions of runs and their table."""
    conditions = {
        f"{row['cpu']}, {row['cores']} cores, {row['threads']} thread(s), torch {row['version/torch']}, "
        f"transformers {row['version/transformers']}; {row['steps']} steps; "
        f"seeds {seeds_of([other for other in rows if other['steps'] == row['steps']])}."
        for row in rows
    }
    return [*sorted(conditions), "", table(rows)]


def seeds_of(rows: Sequence[Row]) -> str:
    """Return the seeds of runs."""
    return ", ".join(map(str, sorted({row["seed"] for row in rows})))


def table(rows: Sequence[Row]) -> str:
    """Return a Markdown table for each data set and number of steps: means, spread and seeds, best mean first."""
    parts = []
    for data, steps in sets_of(rows):
        lines = []
        for (method, _), runs in group_rows(rows, data, steps).items():
            values = [100 * headline(row) for row in runs]
            heads = sorted({round(row["num_heads"]) for row in runs})
            lines.append(
                {
                    f"{data}, {steps:,} steps": _title(method),
                    "heads": " to ".join(str(number) for number in dict.fromkeys((heads[0], heads[-1]))),
                    f"test {runs[0]['metric']}": f"{statistics.mean(values):.2f} %",
                    "spread": f"{min(values):.2f} to {max(values):.2f}",
                    "seeds": len(values),
                    "_order": (method != "none", -statistics.mean(heads), -statistics.mean(values)),
                }
            )
        lines.sort(key=lambda line: line["_order"])
        parts.append(records.markdown(lines, list(lines[0])[:-1]))
    return "\n\n".join(parts)


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


def _title(method: str) -> str:
    return METHODS[method].title if method in METHODS else method
