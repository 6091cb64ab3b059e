"""Rows of the table that shows a dense and a compact model side by side."""

from collections.abc import Mapping, Sequence

from gating.pruning.latency.comparison import LatencyComparison
from gating.report.card import Row
from gating.units import UNITS

__all__ = ["latency_rows", "size_rows"]

# Name in tables, divisor of the shown value, and its decimals.
_SHOWN = {
    **{name: (f"{unit.label} {name}", 1, 0) for name, unit in UNITS.items()},
    "macs": ("multiply-accumulates (millions)", 1e6, 1),
    "parameters": ("parameters", 1, 0),
    "megabytes": ("size on disk (MB)", 1, 1),
    "cache": ("key-value cache (bytes per token)", 1, 0),
}


def size_rows(sizes: Mapping[str, tuple[float, float]], kinds: Mapping[str, tuple[int, int]]) -> list[Row]:
    """Return rows of the sizes and kinds of heads of :class:`~gating.report.summary.Summary`."""
    named = [(_SHOWN[name], numbers) for name, numbers in sizes.items()]
    heads = [((f"{kind} heads", 1, 0), numbers) for kind, numbers in kinds.items()]
    return [
        Row(name, f"{before / unit:,.{digits}f}", f"{after / unit:,.{digits}f}", f"{after / before:.2f}")
        for (name, unit, digits), (before, after) in (*named[:1], *heads, *named[1:])
        if before
    ]


def latency_rows(latencies: Sequence[LatencyComparison]) -> list[Row]:
    """Return a row for each timed batch."""
    return [
        Row(
            f"latency (ms), {times.words}",
            f"{1e3 * times.before:.1f}",
            f"{1e3 * times.after:.1f}",
            f"{times.speedup:.2f}x faster",
        )
        for times in latencies
    ]
