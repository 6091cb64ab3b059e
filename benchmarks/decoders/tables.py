"""Tables of the benchmark of decoders."""

from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from benchmarks import records

Rows = Sequence[Mapping[str, Any]]

# Neurons in a group, and steps before and after the removal, of what pages show.
_SHOWN = (
    (0, 0, 0),
    (0, 0, 140),
    (64, 120, 140),
    (64, 12, 140),
    (8, 60, 140),
    (8, 12, 140),
    (64, 60, 200),
    (64, 12, 248),
)


def quality_table(rows: Rows) -> list[str]:
    """Return a line for each method, its settings and share, with means over seeds and standard deviations."""
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        settings = (row.get("group_size", 0), row.get("search", 0), row.get("healing", 0))
        if settings in _SHOWN:
            groups.setdefault((row["share"], row["method"], *settings), []).append(row)
    lines = []
    for about in sorted(groups, key=lambda about: (-about[0], *about[1:])):
        (share, method, group_size, search, healing), same = about, groups[about]
        lines.append(
            {
                "method": method,
                "cost kept": f"{share:g}",
                "neurons in a group": group_size or "-",
                "steps before and after the removal": f"{search} + {healing}",
                "perplexity, Shakespeare": _spread([row["domain"] for row in same]),
                "perplexity, BBC News": _spread([row["general"] for row in same]),
                "seeds": len(same),
            }
        )
    return [*records.machines(rows), records.markdown(lines)]


def speed_table(rows: Rows) -> list[str]:
    """Return a line for each model with weights of 8 bits: size, cache, speed over the dense model, and perplexity."""
    columns = {
        "": "",
        "megabytes": "MB",
        "cache_bytes": "cache, bytes a token",
        "prompting": "prompt of 256 tokens",
        "writing": "64 tokens after it",
        "f16": "perplexity, f16",
        "q8_0": "perplexity, q8_0",
    }
    timed = [row for row in rows if row["section"] == "speed" and row["dtype"] == "q8_0"]
    scored = {(row["run"], row["dtype"]): row["domain"] for row in rows if row["section"] == "quantized"}
    dense = {"run": "as it was", "cache_bytes": timed[0]["dense_cache_bytes"], "megabytes": timed[0]["dense_megabytes"]}
    lines = []
    for row in (dense, *timed):
        scores = {dtype: scored.get((row["run"], dtype)) for dtype in ("f16", "q8_0")}
        speeds = {name: f"{row[name][0]:.2f}x" for name in ("prompting", "writing") if name in row}
        lines.append({"": _title(str(row["run"])), **row, **speeds, **scores})
    return [*records.machines(timed), records.markdown(lines, columns)]


def _title(run: str) -> str:
    """Return the method and share of a run, whose name ends with its seed."""
    method, _, share = run.rpartition("-")[0].rpartition("-")
    return f"{method.replace('-', ' ')}, {share}" if method else run


def _spread(values: Sequence[float]) -> str:
    return f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")
