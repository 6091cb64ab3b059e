"""Table and figure of accuracy against measured speed."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import records
from benchmarks.compare import figure
from benchmarks.compare.methods import INT8, METHODS
from benchmarks.compare.outcome import DATA, Row, group_rows, headline, machines, seeds_of, sets_of
from benchmarks.compare.paired import difference

OURS = "both"
# Methods that are compared with another one of ours: that with the same teacher, or with weights of the same type.
_OURS_WITH = {"layers_taught": "both_taught", f"none{INT8}": f"both{INT8}"}
# Models are equally fast if their speed-ups differ by at most this share; timings differ by some percent themselves.
_TOLERANCE = 0.1
# A dense run that ends this many points below the best of its seeds has not learned the task.
_FAILED = 10.0


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
    def scores(self) -> dict[int, float]:
        """Test score in percent by seed, without failed runs of the dense model."""
        return {seed: score for seed, score in self._all_scores.items() if seed not in self.failed}

    @property
    def failed(self) -> dict[int, float]:
        """Test score in percent by seed, of dense runs that did not learn the task.

        Everything is compared with the dense model, which its failures would make look worse than it is; those of other
        methods count.
        """
        if self.method != "none":
            return {}
        best = max(self._all_scores.values())
        return {seed: score for seed, score in self._all_scores.items() if score < best - _FAILED}

    @property
    def _all_scores(self) -> dict[int, float]:
        return {row["seed"]: 100 * headline(row) for row in self.rows}

    @property
    def mean(self) -> float:
        """Mean test score in percent."""
        return statistics.mean(self.scores.values())

    @property
    def error(self) -> float:
        """Standard error of the mean test score in percent; 0 with one seed."""
        values = self.scores.values()
        return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0

    @property
    def title(self) -> str:
        """Method and size, such as ``first layers: 3 layers``."""
        method = METHODS.get(self.method)
        if method is None or self.asked is None:
            asked = "" if self.asked is None else f": {self.asked:g}"
            return f"{method.title if method else self.method}{asked}"
        return f"{method.title}: {method.ask.title.format(self.asked)}" if method.ask else method.title


# For a method and a size, the equally fast point of ours.
Pairs = Mapping[tuple[str, float | None], Point]


def lines(rows: Sequence[Row]) -> list[str]:
    """Return the machines of runs, and a table for the shorter and the longer trainings.

    A line has the means of a method and size, the slowest first. Cells of data sets have the change from the dense
    model in points, with its standard error over the seeds that both have.
    """
    steps_of: dict[str, list[int]] = {}
    for data, steps in sets_of(rows):
        steps_of.setdefault(data, []).append(steps)
    parts: list[str] = [""]
    for number in range(max(map(len, steps_of.values()))):
        sets = {data: steps[number] for data, steps in steps_of.items() if len(steps) > number}
        parts += [_table({data: points_of(rows, data, steps) for data, steps in sets.items()}, sets), ""]
    return [*machines(rows), *parts[:-1], *_left_out(rows)]


def _table(sets: Mapping[str, Sequence[Point]], steps: Mapping[str, int]) -> str:
    """Return the table of some data sets with their numbers of steps."""
    dense = {data: point for data, points in sets.items() for point in points if point.method == "none"}
    groups: dict[str, dict[str, Point]] = {}
    for data, points in sets.items():
        for point in points:
            groups.setdefault(point.title, {})[data] = point
    lines = []
    for title, by_data in groups.items():
        points = list(by_data.values())
        line = {"method": title, "speed-up": f"{statistics.mean(point.speedup for point in points):.2f}"}
        for name in ("speedup_short", "num_heads", "num_neurons"):
            values = [row[name] for point in points for row in point.rows if name in row]
            if values:
                line[name] = f"{statistics.mean(values):,.{2 if name == 'speedup_short' else 0}f}"
        for data, point in by_data.items():
            change = difference(point.scores, dense[data].scores)
            line[data] = f"{point.mean:.1f} %" if point is dense[data] else str(change)
        lines.append(line | {"seeds": seeds_of([row for point in points for row in point.rows])})
    lines.sort(key=lambda line: float(line["speed-up"]))
    shown = {"method": f"{' / '.join(f'{number:,}' for number in dict.fromkeys(steps.values()))} steps"}
    shown |= {"speed-up": "speed-up", "speedup_short": "of one text", "num_heads": "heads", "num_neurons": "neurons"}
    shown |= {data: DATA.get(data, data) for data in sets} | {"seeds": "seeds"}
    return records.markdown(
        lines, {name: title for name, title in shown.items() if any(name in line for line in lines)}
    )


def _left_out(rows: Sequence[Row]) -> list[str]:
    """Return a sentence for each failed run of a dense model."""
    failed = [
        (data, seed, score)
        for data, steps in sets_of(rows)
        for point in points_of(rows, data, steps)
        for seed, score in point.failed.items()
    ]
    return [
        line
        for data, seed, score in failed
        for line in (
            "",
            f"{DATA.get(data, data)}: the dense model ended at {score:.1f} % with seed {seed}; this run is left out.",
        )
    ]


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw accuracy against measured speed-up, a panel for each data set: means, with their standard errors."""
    panels = {}
    for data, steps in sets_of(rows):
        methods: dict[str, list[figure.Place]] = {}
        for point in points_of(rows, data, steps):
            methods.setdefault(point.method, []).append((point.speedup, point.mean, point.error, point.error))
        panels[data, steps] = methods
    figure.draw(panels, path, titles=_title, strong=OURS, label="measured speed-up", metric=rows[0]["metric"])


def points_of(rows: Sequence[Row], data: str, steps: int) -> list[Point]:
    """Return the results of a data set, a point for each method and size."""
    return [Point(method, asked, runs) for (method, asked), runs in group_rows(rows, data, steps).items()]


def pair_points(points: Iterable[Point]) -> Pairs:
    """Return for each point of another method the point of ours that is as fast, if there is one."""
    points = list(points)
    pairs = {}
    for point in points:
        ours = [own for own in points if own.method == _OURS_WITH.get(point.method, OURS)]
        if point.method in (OURS, "none") or not ours:
            continue
        nearest = min(ours, key=lambda own: abs(math.log(own.speedup / point.speedup)))
        if abs(nearest.speedup / point.speedup - 1) <= _TOLERANCE:
            pairs[point.method, point.asked] = nearest
    return pairs


def _title(method: str) -> str:
    return METHODS[method].title if method in METHODS else method


def summary(rows: Sequence[Row]) -> list[str]:
    """Return a Markdown table of means over all data sets, in percent, a line for each speed-up that was asked for.

    A line has heads and neurons, and of the equally fast models those of heads alone and of the first layers that are
    nearest in speed; in brackets, how far heads and neurons are ahead. Seeds that a data set lacks are left out.
    """
    sets = [points_of(rows, data, steps) for data, steps in sets_of(rows)]
    dense = _mean_scores([point for points in sets for point in points if point.method == "none"], len(sets))
    lines = []
    for asked in sorted({point.asked or 0.0 for points in sets for point in points if point.method == OURS}):
        ours = [point for points in sets for point in points if (point.method, point.asked) == (OURS, asked)]
        scores = _mean_scores(ours, len(sets))
        line = {"speedup": f"{asked:g}x", "dense": _shown(dense), "both": _shown(scores)}
        for method in ("heads", "layers"):
            found = [nearest for points in sets if (nearest := _nearest(points, method, asked)) is not None]
            others = _mean_scores(found, len(sets))
            ahead = difference(scores, others)
            if ahead is not None:
                line[method] = f"{_shown(others)} ({ahead})"
        lines.append(line)
    columns = {"speedup": "", "dense": "dense", "both": "both", "heads": "heads alone", "layers": "first layers"}
    return [records.markdown(lines, columns)]


def _nearest(points: Sequence[Point], method: str, asked: float) -> Point | None:
    """Return of the points of a method that are as fast as one of ours that which is nearest in speed."""
    pairs = pair_points(points)
    found = [point for point in points if point.method == method and (method, point.asked) in pairs]
    found = [point for point in found if pairs[method, point.asked].asked == asked]
    return min(found, key=lambda point: abs(math.log(point.speedup / pairs[method, point.asked].speedup)), default=None)


def _mean_scores(points: Sequence[Point], num_sets: int) -> dict[int, float]:
    """Return means over data sets by seed, of the seeds that all have; empty unless there is a point of each set."""
    if len(points) < num_sets:
        return {}
    seeds = set.intersection(*(set(point.scores) for point in points)) if points else set()
    return {seed: statistics.mean(point.scores[seed] for point in points) for seed in sorted(seeds)}


def _shown(scores: Mapping[int, float]) -> str | None:
    return f"{statistics.mean(scores.values()):.1f}" if scores else None
