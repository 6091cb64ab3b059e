"""Tables of the benchmark of decoders."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import records
from benchmarks.compare.paired import differences, show_mean

Rows = Sequence[Mapping[str, Any]]

# Texts of the rows -> their names.
_TEXTS = {"domain": "Shakespeare", "general": "BBC News"}


def quality_table(rows: Rows) -> list[str]:
    """Return a line for each method, its settings and share, with means over seeds and standard errors."""
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        about = (-row["share"], row["method"], *(row.get(name, 0) for name in ("group_size", "search", "healing")))
        groups.setdefault(about, []).append(row)
    groups = dict(sorted(groups.items()))
    lines = []
    for (share, method, group_size, search, healing), same in groups.items():
        lines.append(
            {
                "method": method,
                "cost kept": f"{-share:g}",
                "neurons in a group": group_size or "-",
                "steps before and after the removal": f"{search} + {healing}",
                **{
                    f"perplexity, {text}": show_mean([row[name] for row in same], ".1f")
                    for name, text in _TEXTS.items()
                },
                "seeds": len(same),
            }
        )
    return [*records.machines(rows), records.markdown(lines), *_leads(groups)]


def _leads(groups: Mapping[tuple[Any, ...], Rows]) -> list[str]:
    """Return how far the perplexities of gates are from those of a ranking, paired by processor and seed."""
    leads: dict[str, list[str]] = {}
    for name, text in _TEXTS.items():
        scores = {about: {(row["cpu"], row["seed"]): row[name] for row in rows} for about, rows in groups.items()}
        gates = {(share, size): own for (share, method, size, *_), own in scores.items() if method == "gates"}
        for (share, method, size, search, healing), found in scores.items():
            if method == "one-shot" and (values := differences(gates.get((share, size), {}), found)):
                title = f"{text}, gates minus one-shot with {search} + {healing} steps, groups of {size}"
                leads.setdefault(title, []).append(f"{show_mean(values, '+.1f')} at {-share:g}")
    return [line for title, found in leads.items() for line in ("", f"{title}: {', '.join(found)}.")]


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
