"""Table and figure of a comparison."""

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks import records
from benchmarks.compare.methods import METHODS

__all__ = ["Row", "conditions", "draw", "group_rows", "headline", "sets_of", "table"]

Row = Mapping[str, Any]


def headline(row: Row) -> float:
    """Return the first metric of a run's task on test data."""
    return float(row[f"test/{row['metric']}"])


def conditions(rows: Sequence[Row]) -> list[str]:
    """Return the machines, versions, steps and seeds of runs, a line for each combination."""
    return sorted(
        {
            f"{row['cpu']}, {row['cores']} cores, {row['threads']} thread(s), torch {row['version/torch']}, "
            f"transformers {row['version/transformers']}; {row['steps']} steps; seeds {_seeds(rows, row['steps'])}."
            for row in rows
        }
    )


def _seeds(rows: Sequence[Row], steps: int) -> str:
    return ", ".join(map(str, sorted({row["seed"] for row in rows if row["steps"] == steps})))


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
                    "method": _title(method),
                    "heads": " to ".join(str(number) for number in dict.fromkeys((heads[0], heads[-1]))),
                    "mean": f"{statistics.mean(values):.2f} %",
                    "spread": f"{min(values):.2f} to {max(values):.2f}",
                    "seeds": len(values),
                    "_order": (method != "none", -statistics.mean(heads), -statistics.mean(values)),
                }
            )
        lines.sort(key=lambda line: line["_order"])
        metric = next(row["metric"] for row in rows if row["data"] == data)
        columns = {
            "method": f"{data}, {steps:,} steps",
            "heads": "heads",
            "mean": f"test {metric}",
            "spread": "spread",
            "seeds": "seeds",
        }
        parts.append(records.markdown(lines, columns))
    return "\n\n".join(parts)


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw accuracy against heads kept, a panel for each data set: means, and lines from the worst to the best seed."""
    sets = sets_of(rows)
    # A method has one color and one place in all panels.
    order = list(dict.fromkeys(row["method"] for row in rows if row["method"] != "none"))
    num_rows = len({steps for _, steps in sets})
    num_columns = max(sum(steps == some for _, some in sets) for _, steps in sets) if sets else 1
    figure = Figure(figsize=(5.2 * num_columns, 4.2 * max(1, num_rows)), layout="constrained")
    for number, (data, steps) in enumerate(sets):
        axes = figure.add_subplot(num_rows, num_columns, number + 1)
        groups = group_rows(rows, data, steps)
        for method in dict.fromkeys(name for name, _ in groups):
            runs = [group for (name, _), group in groups.items() if name == method]
            _draw_method(axes, method, runs, index=order.index(method) if method in order else 0)
        axes.set_xscale("log", base=2)
        ticks = sorted({asked for _, asked in groups if asked is not None})
        axes.set_xticks(ticks, [str(tick) for tick in ticks], minor=False)
        axes.set_title(f"{data}, {steps:,} steps")
        axes.set_xlabel("heads kept")
        axes.set_ylabel(f"test {next(iter(groups.values()))[0]['metric']}, %")
        axes.grid(alpha=0.25)
    shown = {name: line for axes in figure.axes for line, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(shown.values(), shown.keys(), fontsize=8, ncols=3, loc="outside lower center")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def _draw_method(axes: Any, method: str, groups: list[list[Row]], *, index: int) -> None:
    points = []
    for runs in groups:
        values = [100 * headline(row) for row in runs]
        heads = statistics.mean(row["num_heads"] for row in runs)
        points.append((heads, statistics.mean(values), min(values), max(values)))
    points.sort()
    if method == "none":
        axes.axhline(points[0][1], color="black", linestyle="--", linewidth=1, label=_title(method))
        axes.axhspan(points[0][2], points[0][3], color="black", alpha=0.08)
        return
    heads, means, lows, highs = map(list, zip(*points, strict=True))
    strong = {"linewidth": 2.4, "zorder": 5} if method == "budget" else {"linewidth": 1.2}
    errors = [[m - low for m, low in zip(means, lows, strict=True)], [h - m for m, h in zip(means, highs, strict=True)]]
    axes.errorbar(
        [value * (1 + 0.012 * index) for value in heads],
        means,
        yerr=errors,
        color=f"C{index}",
        marker="o",
        ms=4,
        capsize=2,
        label=_title(method),
        **strong,
    )


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
