"""Table and figure of accuracy against measured speed."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import records
from benchmarks.compare import figure
from benchmarks.compare.methods import METHODS, RIVALS
from benchmarks.compare.outcome import DATA, Row, group_rows, scores_of, seeds_of, sets_of
from benchmarks.compare.paired import differences, show_mean, standard_error

OURS = "both"
# With fewer pairs, the standard error of a lead says little.
_SEEDS = 3


@dataclass(frozen=True)
class Point:
    """The runs of a method at one size.

    Attributes:
        method: Name of the method.
        asked: The size that was asked for; None if there is only one.
        rows: A result for each seed.
    """

    method: str
    asked: float | None
    rows: Sequence[Row]

    @property
    def speedup(self) -> float:
        """Mean of the measured speed-ups; 1 for the dense model."""
        return 1.0 if self.method == "none" else statistics.mean(row["speedup"] for row in self.rows)

    @property
    def scores(self) -> dict[tuple[str, int], float]:
        """Test scores in percent by processor and seed."""
        return scores_of(self.rows)

    @property
    def mean(self) -> float:
        """Mean test score in percent."""
        return statistics.mean(self.scores.values())

    @property
    def error(self) -> float:
        """Standard error of the mean test score in percent; 0 with one seed."""
        return standard_error(self.scores.values()) if len(self.scores) > 1 else 0.0

    @property
    def minutes(self) -> float:
        """Mean minutes of a run, from its first step to its last number, with one digit behind the point."""
        runs = [sum(value for name, value in row.items() if name.startswith("seconds/")) / 60 for row in self.rows]
        return round(statistics.mean(runs), 1)

    @property
    def title(self) -> str:
        """Method and size, such as ``first layers: 3 layers``."""
        method = METHODS.get(self.method)
        if method is None or self.asked is None:
            asked = "" if self.asked is None else f": {self.asked:g}"
            return f"{method.title if method else self.method}{asked}"
        return f"{method.title}: {method.ask.title.format(self.asked)}" if method.ask else method.title


def lines(rows: Sequence[Row], *, has_minutes: bool = False) -> list[str]:
    """Return the machines of runs, and a table for the shorter and the longer trainings.

    A line has the means of a method and size, the slowest first. Cells of data sets have the change from the dense
    model in points, with its standard error over the seeds that both have. With ``has_minutes`` it has the time of the
    whole run, over that of the dense one, too.
    """
    steps_of: dict[str, list[int]] = {}
    for data, steps in sets_of(rows):
        steps_of.setdefault(data, []).append(steps)
    parts: list[str] = []
    for number in range(max(map(len, steps_of.values()))):
        sets = {data: steps[number] for data, steps in steps_of.items() if len(steps) > number}
        points = {data: points_of(rows, data, steps) for data, steps in sets.items()}
        parts += [_table(points, sets, has_minutes=has_minutes), ""]
    return [*records.machines(rows), *parts[:-1], *_leads(rows)]


def _table(sets: Mapping[str, Sequence[Point]], steps: Mapping[str, int], *, has_minutes: bool) -> str:
    """Return the table of some data sets with their numbers of steps."""
    dense = {data: point for data, points in sets.items() for point in points if point.method == "none"}
    groups: dict[tuple[str, float | None], dict[str, Point]] = {}
    for data, points in sets.items():
        for point in points:
            groups.setdefault((point.method, point.asked), {})[data] = point
    lines = []
    for by_data in groups.values():
        points = list(by_data.values())
        line = {"method": points[0].title, "speed-up": f"{statistics.mean(point.speedup for point in points):.2f}"}
        for name in ("speedup_short", "num_heads", "num_neurons"):
            values = [row[name] for point in points for row in point.rows if name in row]
            if values:
                line[name] = f"{statistics.mean(values):,.{2 if name == 'speedup_short' else 0}f}"
        for data, point in by_data.items():
            if point is dense[data]:
                line[data] = f"{point.mean:.1f} %"
            elif changes := differences(point.scores, dense[data].scores):
                line[data] = show_mean(changes)
            if has_minutes:
                line["minutes"] = f"{point.minutes:.1f} ({point.minutes / dense[data].minutes:.2f}x)"
        lines.append(line | {"seeds": seeds_of([row for point in points for row in point.rows])})
    lines.sort(key=lambda line: float(line["speed-up"]))
    shown = {"method": f"{' / '.join(f'{number:,}' for number in dict.fromkeys(steps.values()))} steps"}
    shown |= {"speed-up": "speed-up", "speedup_short": "of one text", "num_heads": "heads", "num_neurons": "neurons"}
    shown |= {data: DATA.get(data, data) for data in sets} | {"minutes": "minutes", "seeds": "seeds"}
    return records.markdown(
        lines, {name: title for name, title in shown.items() if any(name in line for line in lines)}
    )


def _leads(rows: Sequence[Row]) -> list[str]:
    """Return a sentence for each rival and speed-up: how far ours is ahead of it, paired by seed."""
    leads: dict[str, list[str]] = {}
    for data, steps in sets_of(rows):
        points = points_of(rows, data, steps)
        ours = {point.asked: point for point in points if point.method == OURS}
        for point in points:
            if point.method in RIVALS and point.asked in ours:
                ahead = differences(ours[point.asked].scores, point.scores)
                if len(ahead) >= _SEEDS:
                    title = f"{ours[point.asked].title} minus {RIVALS[point.method]}"
                    leads.setdefault(title, []).append(f"{DATA.get(data, data)} {show_mean(ahead)}")
    return [line for title, found in leads.items() for line in ("", f"{title}, in points: {', '.join(found)}.")]


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw accuracy against measured speed-up, a panel for each data set: means, with their standard errors."""
    panels = {}
    for data, steps in sets_of(rows):
        methods: dict[str, list[figure.Place]] = {}
        for point in points_of(rows, data, steps):
            methods.setdefault(point.method, []).append((point.speedup, point.mean, point.error, point.error))
        panels[DATA.get(data, data), steps] = methods
    figure.draw(panels, path, titles=_title, strong=OURS, label="measured speed-up", metric=rows[0]["metric"])


def points_of(rows: Sequence[Row], data: str, steps: int) -> list[Point]:
    """Return the results of a data set, a point for each method and size."""
    return [Point(method, asked, runs) for (method, asked), runs in group_rows(rows, data, steps).items()]


def _title(method: str) -> str:
    return METHODS[method].title if method in METHODS else method
