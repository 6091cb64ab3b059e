"""Tables of the results: Markdown lines."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import records
from benchmarks.compare.paired import differences, show_mean
from benchmarks.embeddings.lines import LINES, PYTORCH, SIZES, key, wanted
from gating.report.rows import quotient, show_number

Row = dict[str, Any]

# Ours beside the first layers that are about as fast.
_PAIRS = (("ours-2", "first-3"), ("ours-3", "first-2"))
_QUALITY = {"sick": "SICK", "stsb": "STS-B", "bbc_ndcg": "BBC", "snli_ndcg": "SNLI", "neighbors": "neighbors"}
# Lines and runtimes of the table of runtimes.
_EXPORTED = (
    *(("dense", runtime) for runtime in (PYTORCH, "ONNX Runtime", "ONNX Runtime, int8")),
    *(("ours-2", runtime) for runtime in (PYTORCH, "ONNX Runtime", "ONNX Runtime, int8")),
    ("ours-3", "ONNX Runtime, int8"),
)
_SIZES = {f"{rows}x{length}": f"{rows} x {length} tokens" for rows, length in SIZES}
_SIZE = "32x32"


def quality_table(rows: Sequence[Row]) -> list[str]:
    """Show the speed-up and the quality of all lines in PyTorch, the slowest first, and the leads of ours."""
    columns = {"line": "", f"over_pytorch_{_SIZE}": "speed-up"}
    groups = [group for (_, runtime), group in _groups(rows).items() if runtime == PYTORCH]
    groups.sort(key=lambda group: _middle(group, f"over_pytorch_{_SIZE}"))
    lines = []
    for group in groups:
        speedups = {name: f"{_middle(group, name):.2f}x" for name in columns if name != "line"}
        about = {"line": LINES[group[0]["line"]].title, "seeds": _seeds(group)}
        lines.append({**about, **speedups, **_quality(group)})
    return [*records.machines(rows), records.markdown(lines, columns | _QUALITY | {"seeds": "seeds"}), *_leads(rows)]


def runtimes_table(rows: Sequence[Row]) -> list[str]:
    """Show the sentences per second of each runtime: those of the dense model in PyTorch times the speed-up over it."""
    columns = {"line": "", "runtime": "runtime", **_SIZES, "sick": "SICK", "stsb": "STS-B"}
    groups = _groups(rows)
    # Lines are measured at other times, which only ratios leave out.
    (dense,) = groups["dense", PYTORCH]
    lines = []
    for name, runtime in _EXPORTED:
        group = groups.get((name, runtime))
        if group:
            ratios = {size: _middle(group, f"over_pytorch_{size}") for size in _SIZES}
            speeds = {}
            for size, value in ratios.items():
                before, after = (show_number(factor * dense[f"per_second_{size}"], 4) for factor in (1, value))
                speeds[size] = f"{after} ({quotient(after, before):.2f}x)"
            about = {"line": LINES[name].title, "runtime": runtime}
            lines.append({**about, **speeds, **_quality(group)})
    return [*records.machines(rows), records.markdown(lines, columns)]


def _groups(rows: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    """Return the results of each line and runtime, of the present settings, in the order of the lines."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for name, line in LINES.items():
        for runtime in line.runtimes:
            own = [row for row in rows if (row["line"], row["runtime"]) == (name, runtime)]
            present = [row for row in own if key(row) in map(key, wanted(name, row["seed"]))]
            if present:
                groups[name, runtime] = present
    return groups


def _leads(rows: Sequence[Row]) -> list[str]:
    """Return how far ours are ahead of the first layers, paired by seed."""
    groups = _groups(rows)
    lines = []
    for names in _PAIRS:
        pair = [groups.get((name, PYTORCH), []) for name in names]
        parts = []
        for name, heading in _QUALITY.items():
            ahead = differences(*({row["seed"]: row[name] for row in group if name in row} for group in pair))
            if ahead:
                parts.append(f"{heading} {show_mean(ahead)}")
        seeds = len(set.intersection(*({row["seed"] for row in group} for group in pair)))
        title = " minus ".join(LINES[name].title for name in names)
        if parts:
            lines += ["", f"{title}, in points, paired over {seeds} seed(s): {', '.join(parts)}."]
    return lines


def _quality(group: Sequence[Row]) -> Mapping[str, str]:
    return {
        name: show_mean([row[name] for row in group if name in row], ".2f") for name in _QUALITY if name in group[0]
    }


def _middle(group: Sequence[Row], name: str) -> float:
    """Return the mean over seeds of the medians over rounds."""
    return float(statistics.mean(row[name][0] for row in group))


def _seeds(group: Sequence[Row]) -> int | None:
    """Return the number of seeds; None for the dense model."""
    return None if group[0]["seed"] is None else len(group)
