"""Tables of the results."""

from collections.abc import Sequence

from benchmarks import records
from benchmarks.speed.shapes import Row

# Titles of the training table's columns, by the first words of a result.
_STEPS = {
    "control": "two dense models",
    "gated step /": "step with gates",
    "step with gates": "step with gates",
    "recovery step": "step of the recovery",
    "all steps": "all steps of a run",
}


def training_table(rows: Sequence[Row]) -> list[str]:
    """Return the time of training steps over that of dense ones, a line for each model, batch and kind of gates."""
    lines: dict[tuple[str, str], Row] = {}
    rows = [row for row in rows if row["section"] in ("steps", "neurons")]
    for row in rows:
        gated = "heads" if row["section"] == "steps" else "heads and neurons"
        line = lines.setdefault((row["case"], gated), {"case": row["case"], "gates on": gated})
        line[next(title for start, title in _STEPS.items() if row["what"].startswith(start))] = _middle(row)
    columns = {"case": "model and batch", "gates on": "gates on", **{title: title for title in _STEPS.values()}}
    return [*records.machines(rows), records.markdown(lines.values(), columns)]


def ratio_table(sections: Sequence[str], rows: Sequence[Row]) -> list[str]:
    """Return the ratios of some sections, with their quartiles."""
    rows = [row for row in rows if row["section"] in sections]
    columns = {"what": "", "case": "case", "ratio": "ratio"}
    rows = [{**row, "ratio": "{:.2f} ({:.2f}-{:.2f})".format(*row["ratio"])} for row in rows]
    return [*records.machines(rows), records.markdown(rows, columns)]


def speedups(rows: Sequence[Row]) -> list[str]:
    """Return speed-ups with a line for each batch and a column for each share of heads: measured, and allowed."""
    rows = [row for row in rows if row["section"] == "speedup"]
    shares = sorted({_share(row) for row in rows}, key=lambda text: -float(text.rstrip("%")))
    cases: dict[str, Row] = {}
    for row in rows:
        cell = f"{_middle(row)} of {row['flops_allow']:.2f}"
        cases.setdefault(row["case"], {"case": row["case"]})[_share(row)] = cell
    columns = {"case": "model and batch", **{share: f"{share} of the heads" for share in shares}}
    return [*records.machines(rows), records.markdown(cases.values(), columns)]


def finalize_table(rows: Sequence[Row]) -> list[str]:
    """Return the time and the additional memory of a removal, and the time of loading the compact model."""
    loading = {row["case"].partition(",")[0]: row["ratio"][0] for row in rows if row["section"] == "reload"}
    lines = [
        {
            "model": row["case"],
            "seconds": f"{row['seconds']:.2f}",
            "additional memory, MB": f"{row['extra_mb']:.1f}",
            "largest matrix, MB": f"{row['projection_mb']:.1f}",
            "load_compact / from_pretrained": f"{loading[row['case']]:.1f}",
        }
        for row in rows
        if row["section"] == "finalize"
    ]
    return [
        *records.machines([row for row in rows if row["section"] in ("finalize", "reload")]),
        records.markdown(lines),
    ]


def _middle(row: Row) -> str:
    return f"{row['ratio'][0]:.2f}"


def _share(row: Row) -> str:
    return row["what"].partition(" at ")[2].partition(" ")[0]
