"""Means of accuracy at measured speeds over all data sets."""

import math
import statistics
from collections.abc import Mapping, Sequence

from benchmarks import records
from benchmarks.compare.latency import OURS, Point, pair_points, points_of
from benchmarks.compare.outcome import Row, sets_of
from benchmarks.compare.paired import difference

__all__ = ["summary"]


def summary(rows: Sequence[Row]) -> str:
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
    return records.markdown(lines, columns)


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
