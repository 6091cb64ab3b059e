"""Table and figure of accuracy against measured speed."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import records
from benchmarks.compare import figure
from benchmarks.compare.methods import INT8, LATENCY_METHODS
from benchmarks.compare.outcome import Row, group_rows, headline, seeds_of, sets_of
from benchmarks.compare.paired import Difference, difference, smallest_difference

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
        method = LATENCY_METHODS.get(self.method)
        if method is None or self.asked is None:
            asked = "" if self.asked is None else f": {self.asked:g}"
            return f"{method.title if method else self.method}{asked}"
        return f"{method.title}: {method.ask.title.format(self.asked)}" if method.ask else method.title


# For a method and a size, the equally fast point of ours.
Pairs = Mapping[tuple[str, float | None], Point]


def lines(rows: Sequence[Row]) -> list[str]:
    """Return the conditions of runs, for each data set, number of steps and machine, and their tables."""
    conditions = {}
    for data, steps in sets_of(rows):
        own = [row for row in rows if (row["data"], row["steps"]) == (data, steps)]
        batches = records.timed_batches(own, conjunction="and")
        for row in own:
            conditions[
                f"{data}: {row.get('gpu') or row['cpu']}, {row['cores']} cores, {row['threads']} thread(s), torch "
                f"{row['version/torch']}, transformers {row['version/transformers']}; {steps} steps; "
                f"seeds {seeds_of(own)}; latency of {batches} in single precision, in turns with the dense model."
            ] = None
    return [*conditions, "", table(rows)]


def table(rows: Sequence[Row]) -> str:
    """Return a Markdown table for each data set and number of steps, the slowest models first.

    Differences are in points, with their standard errors over the seeds that both methods have. The last sentences have
    the smallest differences that a t-test tells from zero with p < 0.05.
    """
    parts = []
    for data, steps in sets_of(rows):
        points = points_of(rows, data, steps)
        pairs = pair_points(points)
        dense = next((point for point in points if point.method == "none"), None)
        ordered = sorted(points, key=lambda point: (point.speedup, -point.mean))
        lines = [{f"{data}, {steps:,} steps": point.title, **_line(point, dense, pairs)} for point in ordered]
        hidden = () if any("speedup_short" in row for row in rows) else ("of one text",)
        parts.append(records.markdown(lines, [name for name in lines[0] if name not in hidden]))
        for seed, score in (dense.failed if dense else {}).items():
            parts.append(f"{data}: the dense model ended at {score:.2f} % with seed {seed}, and this run is left out.")
    return "\n\n".join([*parts, *told_apart(rows)])


def told_apart(rows: Sequence[Row]) -> list[str]:
    """Return the smallest differences that the seeds of each data set can show, a sentence for each.

    Heads alone and the first layers spread by seed in their own way; all other methods, of which there are few seeds,
    share a pooled spread.
    """
    sentences = []
    for data, steps in sets_of(rows):
        points = points_of(rows, data, steps)
        pairs = pair_points(points)
        others = {point.method for point in points} - {"heads", "layers"}
        bounds = []
        for names, title in ((("heads",), _title("heads")), (("layers",), _title("layers")), (others, "other methods")):
            own = [_ahead(point, pairs) for point in points if point.method in names]
            found = smallest_difference([ahead for ahead in own if ahead is not None])
            bounds += [f"{bound:.1f} points to {title} ({seeds} seeds)" for seeds, bound in found.items()]
        if bounds:
            sentences.append(f"{data}, {steps:,} steps: smaller differences can be chance: {', '.join(bounds)}.")
    return sentences


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


def _line(point: Point, dense: Point | None, pairs: Pairs) -> dict[str, Any]:
    above = None if dense is None or dense is point else difference(point.scores, dense.scores)
    ahead = _ahead(point, pairs)
    return {
        "speed-up": f"{point.speedup:.2f}" + _range([row["speedup"] for row in point.rows], digits=2),
        "of one text": _mean(point, "speedup_short", digits=2),
        "heads": _mean(point, "num_heads"),
        "neurons": _mean(point, "num_neurons"),
        f"test {point.rows[0]['metric']}": f"{point.mean:.2f} %",
        "change from dense": str(above) if above else None,
        "both ahead by": str(ahead) if ahead else None,
        "seeds": len(point.scores),
    }


def _ahead(point: Point, pairs: Pairs) -> Difference | None:
    ours = pairs.get((point.method, point.asked))
    return None if ours is None else difference(ours.scores, point.scores)


def _title(method: str) -> str:
    return LATENCY_METHODS[method].title if method in LATENCY_METHODS else method


def _mean(point: Point, name: str, *, digits: int = 0) -> str | None:
    values = [row[name] for row in point.rows if name in row]
    return f"{statistics.mean(values):,.{digits}f}" if values else None


def _range(values: Sequence[float], *, digits: int) -> str:
    low, high = min(values), max(values)
    return "" if round(low, digits) == round(high, digits) else f" ({low:.{digits}f} to {high:.{digits}f})"


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
