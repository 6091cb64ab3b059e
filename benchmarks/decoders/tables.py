"""Tables of the benchmark of decoders."""

from collections.abc import Callable, Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from benchmarks import records
from benchmarks.decoders.runs import Case

Rows = Sequence[Mapping[str, Any]]


def quality_table(rows: Rows) -> list[str]:
    """Return a line for each method, its settings and share, with means over seeds and standard deviations."""
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        settings = (row.get("group_size", 0), row.get("search", 0), row.get("healing", 0))
        groups.setdefault((row["text"], row["share"], row["method"], *settings), []).append(row)
    lines = []
    for about in sorted(groups, key=lambda about: (about[0], -about[1], *about[2:])):
        (text, share, method, group_size, search, healing), same = about, groups[about]
        spreads = {name: _spread([row[name] for row in same]) for name in ("domain", "general")}
        agreements = {name: _spread([100 * row[f"{name}_agreement"] for row in same]) for name in spreads}
        lines.append(
            {
                "text": text,
                "method": method,
                "asked": share,
                "neurons in a group": group_size or "-",
                "steps before and after the removal": f"{search} + {healing}",
                "weights of layers kept": mean(row["cost"] for row in same),
                "seeds": len(same),
                "perplexity, its test": spreads["domain"],
                "same choice, %": agreements["domain"],
                "perplexity, BBC": spreads["general"],
                "same choice there, %": agreements["general"],
            }
        )
    return [*_machines(rows), records.markdown(lines)]


def quantized_table(rows: Rows) -> list[str]:
    """Return a line for each model and type of weights."""
    columns = {
        "run": "run",
        "dtype": "weights",
        "megabytes": "MB",
        "domain": "perplexity, its test",
        "general": "perplexity, BBC",
    }
    return [*_machines(rows), records.markdown(rows, columns)]


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
    return [*_machines(rows), records.markdown(lines, columns)]


def summary_table(rows: Rows) -> list[str]:
    """Return a line for each share of gates, and the dense model, the first layers and one ranking beside them."""
    quality, speed = ([row for row in rows if row["section"] == section] for section in ("quality", "speed"))
    shown = [("as it was", 1.0), *(("gates", share) for share in (0.8, 0.65, 0.5))]
    shown += [("first layers", 0.65), ("one-shot", 0.65)]
    # Runs are timed with one seed, by names that end with it.
    writing = {row["run"].rpartition("-")[0]: row["writing"][0] for row in speed if row["dtype"] == "q8_0"}
    first = next(row for row in quality if row["method"] == "gates")
    fixed = {name: first[name] for name in ("text", "healing", "group_size")}
    known = [row for row in quality if {**fixed, **row}.items() >= fixed.items()]
    lines: list[dict[str, str]] = []
    counts: set[int] = set()
    for method, share in shown:
        same = [row for row in known if (row["method"], row["share"]) == (method, share)]
        if same:
            faster = writing.get(Case(method, share, 0).folder.rpartition("-")[0])
            counts |= {len(same)} if share < 1 else set()
            lines.append(
                {
                    "": method if share == 1 else f"{method}, {share:g}",
                    "perplexity, Shakespeare": f"{mean(row['domain'] for row in same):.1f}",
                    "BBC News": f"{mean(row['general'] for row in same):.1f}",
                    "llama.cpp, q8_0": "-" if faster is None else f"{faster:.2f}x",
                }
            )
    seeds = "-".join(dict.fromkeys((str(min(counts)), str(max(counts)))))
    conditions = f"{first['model']}, {first['healing']} steps, {seeds} seed(s)"
    machines = sorted({row["cpu"] for row in [*known, *speed]})
    return [records.markdown(lines), "", f"{conditions}, {', '.join(machines)}."]


TABLES: Mapping[str, Callable[[Rows], list[str]]] = {
    "quality": quality_table,
    "quantized": quantized_table,
    "speed": speed_table,
}


def _machines(rows: Rows) -> list[str]:
    return [*sorted(set(map(records.describe, rows))), ""]


def _spread(values: Sequence[float]) -> str:
    return f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")
