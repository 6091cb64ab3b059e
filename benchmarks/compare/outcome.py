"""Table and figure of accuracy against heads kept."""

import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks import records
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
        columns = {"method": f"{data}, {steps:,} steps", "heads": "heads", "mean": f"test {metric}"}
        parts.append(records.markdown(lines, columns | {"spread": "spread", "seeds": "seeds"}))
    return "\n\n".join(parts)


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw accuracy against heads kept, a panel for each data set: means, and lines from the worst to the best seed."""
    # A method has one color and one place in all panels.
    order = list(dict.fromkeys(row["method"] for row in rows if row["method"] != "none"))

    def panel(axes: Axes, data: str, steps: int) -> None:
        groups = group_rows(rows, data, steps)
        for method in dict.fromkeys(name for name, _ in groups):
            runs = [group for (name, _), group in groups.items() if name == method]
            _draw_method(axes, method, runs, index=order.index(method) if method in order else 0)
        axes.set_xscale("log", base=2)
        ticks = sorted({asked for _, asked in groups if asked is not None})
        axes.set_xticks(ticks, [str(tick) for tick in ticks], minor=False)
        axes.set_xlabel("heads kept")

    draw_panels(rows, path, panel)


def draw_panels(rows: Sequence[Row], path: Path, panel: Callable[[Axes, str, int], None]) -> None:
    """Draw a panel for each data set, in a line for each number of steps."""
    sets = sets_of(rows)
    num_rows = len({steps for _, steps in sets})
    num_columns = max(sum(steps == some for _, some in sets) for _, steps in sets)
    figure = Figure(figsize=(5.2 * num_columns, 4.3 * num_rows), layout="constrained")
    for number, (data, steps) in enumerate(sets, start=1):
        axes = figure.add_subplot(num_rows, num_columns, number)
        panel(axes, data, steps)
        axes.set_title(f"{data}, {steps:,} steps")
        axes.set_ylabel(f"test {next(row['metric'] for row in rows if row['data'] == data)}, %")
        axes.grid(alpha=0.25)
    shown = {name: line for axes in figure.axes for line, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(shown.values(), shown.keys(), fontsize=8, ncols=3, loc="outside lower center")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def _draw_method(axes: Axes, method: str, groups: list[list[Row]], *, index: int) -> None:
    points = []
    for runs in groups:
        values = [100 * headline(row) for row in runs]
        mean = statistics.mean(values)
        points.append((statistics.mean(row["num_heads"] for row in runs), mean, mean - min(values), max(values) - mean))
    heads, means, below, above = map(list, zip(*sorted(points), strict=True))
    if method == "none":
        axes.axhline(means[0], color="black", linestyle="--", linewidth=1, label=_title(method))
        axes.axhspan(means[0] - below[0], means[0] + above[0], color="black", alpha=0.08)
        return
    axes.errorbar(
        [value * (1 + 0.012 * index) for value in heads],
        means,
        yerr=[below, above],
        color=f"C{index}",
        marker="o",
        ms=4,
        capsize=2,
        label=_title(method),
        **({"linewidth": 2.4, "zorder": 5} if method == "budget" else {"linewidth": 1.2}),
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
