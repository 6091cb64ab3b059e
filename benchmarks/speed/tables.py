"""Tables of the results."""

from collections.abc import Sequence

from benchmarks import records
from benchmarks.speed.shapes import Row

# Sections with a table of their own, in the order of the page.
SECTIONS = ("steps", "teaching", "frozen", "run", "neurons", "growth", "built", "predicted", "finalize", "reload")
_EXTRAS = {
    "seconds": "seconds",
    "extra_mb": "extra MB",
    "projection_mb": "largest projection, MB",
    "gate_ms_per_layer": "gates, ms a layer",
    "finalize_ms_per_layer": "finalizing, ms a layer",
    "at_most": "goal, at most",
    "near": "share within 5 %",
    "units": "time of units",
    "open": "time of open blocks",
    "fixed": "rest",
}


def table(rows: Sequence[Row]) -> list[str]:
    """Return the results of a section."""
    extras = {name: title for name, title in _EXTRAS.items() if any(row.get(name) is not None for row in rows)}
    columns = {"what": "", "case": "case", "ratio": "ratio", **extras, "device": "device"}
    return [*records.facts(rows), records.markdown(rows, columns)]


def speedups(rows: Sequence[Row]) -> list[str]:
    """Return speed-ups with a line for each batch and a column for each share of heads: measured, and allowed."""
    rows = [row for row in rows if row["section"] in ("speedup", "michel")]
    shares = sorted({_share(row) for row in rows}, key=lambda text: -float(text.rstrip("%")))
    cases: dict[str, Row] = {}
    for row in rows:
        middle, low, high = row["ratio"]
        cell = f"{middle:.2f} ({low:.2f}-{high:.2f}) of {row['flops_allow']:.2f}"
        cases.setdefault(row["case"], {"case": row["case"], "device": row["device"]})[_share(row)] = cell
    columns = {"case": "batch x length", **{share: f"{share} of the heads" for share in shares}, "device": "device"}
    return [*records.facts(rows), records.markdown(cases.values(), columns)]


def _share(row: Row) -> str:
    return row["what"].partition(" at ")[2].partition(" ")[0]
