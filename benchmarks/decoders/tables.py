"""Tables of the benchmark of decoders."""

from collections.abc import Callable, Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from benchmarks import records
from benchmarks.measuring import describe

__all__ = ["TABLES"]

Rows = Sequence[Mapping[str, Any]]
_MEASURES = ("domain", "general", "domain_agreement", "general_agreement")


def quality_table(rows: Rows) -> list[str]:
    """Return a line for each method and share, with means over seeds and standard deviations."""
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["text"], row["share"], row["method"]), []).append(row)
    lines = []
    for (text, share, method), same in sorted(groups.items(), key=lambda group: (group[0][0], -group[0][1])):
        percent = {name: [100 * row[name] for row in same] for name in _MEASURES if name.endswith("agreement")}
        lines.append(
            {
                "text": text,
                "method": method,
                "share": share,
                "cost": mean(row["cost"] for row in same),
                "seeds": len(same),
                **{name: _spread([row[name] for row in same], 1) for name in ("domain", "general")},
                **{name: _spread(values, 1) for name, values in percent.items()},
            }
        )
    columns = {
        "text": "text",
        "method": "method",
        "share": "asked",
        "cost": "kept",
        "seeds": "seeds",
        "domain": "perplexity, its test",
        "domain_agreement": "same choice, %",
        "general": "perplexity, BBC",
        "general_agreement": "same choice there, %",
    }
    return [*sorted(set(map(describe, rows))), "", records.markdown(lines, columns)]


def quantized_table(rows: Rows) -> list[str]:
    """Return a line for each model and type of weights."""
    columns = {
        "run": "run",
        "dtype": "weights",
        "megabytes": "MB",
        "domain": "perplexity, its test",
        "general": "perplexity, BBC",
    }
    return [*sorted(set(map(describe, rows))), "", records.markdown(rows, columns)]


def speed_table(rows: Rows) -> list[str]:
    """Return a line for each model and type of weights, with ratios to the dense one."""
    columns = {
        "run": "run",
        "dtype": "weights",
        "prompting": "prompt of 256 tokens",
        "writing": "64 tokens after it",
        "cache_bytes": "cache, bytes a token",
        "megabytes": "MB",
    }
    lines: list[Mapping[str, Any]] = []
    for dtype in dict.fromkeys(row["dtype"] for row in rows):
        same = [row for row in rows if row["dtype"] == dtype]
        dense = {"cache_bytes": same[0]["dense_cache_bytes"], "megabytes": same[0]["dense_megabytes"]}
        lines += [{"run": "dense", "dtype": dtype, **dense}, *same]
    return [*sorted(set(map(describe, rows))), "", records.markdown(lines, columns)]


TABLES: Mapping[str, Callable[[Rows], list[str]]] = {
    "quality": quality_table,
    "quantized": quantized_table,
    "speed": speed_table,
}


def _spread(values: Sequence[float], digits: int) -> str:
    deviation = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{deviation}"
