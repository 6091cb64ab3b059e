"""Write the tables of the README and docs: speed, accuracy, reliability, serving, embeddings, decoders and others.

They are made from benchmarks/results.

    python -m benchmarks.page

Run it after a benchmark; the pages explain the tables.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import example, frozen, memory, records
from benchmarks.compare import latency, outcome
from benchmarks.compare.summary import summary
from benchmarks.decoders import tables as decoders
from benchmarks.embeddings import tables as embeddings
from benchmarks.faults.__main__ import COLUMNS as FAULT_COLUMNS
from benchmarks.measuring import ROOT, describe
from benchmarks.rivals import __main__ as rivals
from benchmarks.serving import tables as serving
from benchmarks.sharding import tables as sharding

__all__ = ["replace_table"]

Row = dict[str, Any]

README = ROOT / "README.md"
ACCURACY = ROOT / "docs" / "accuracy.md"
RELIABILITY = ROOT / "docs" / "reliability.md"
PAGE = ROOT / "docs" / "speed.md"
SEVERAL_GPUS = ROOT / "docs" / "howto" / "several-gpus.md"
SERVING = ROOT / "docs" / "serving.md"
EMBEDDINGS = ROOT / "docs" / "embeddings.md"
DECODERS = ROOT / "docs" / "decoders.md"
FROZEN = ROOT / "docs" / "howto" / "frozen.md"
RESULTS = ROOT / "benchmarks" / "results"


def main() -> None:
    """Rewrite every table whose results are there."""
    argparse.ArgumentParser(
        prog="python -m benchmarks.page", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    write_example()
    write_comparisons()
    write_faults()
    write_speed()
    write_rivals()
    write_sharding()
    write_serving()
    write_embeddings()
    write_frozen()
    write_decoders()


def write_example() -> None:
    """Rewrite the table of the embedded example."""
    rows = records.read(example.RESULTS)
    if rows:
        replace_table(README, "example", example.table(rows))


def write_comparisons() -> None:
    """Rewrite the tables of accuracy."""
    compared, timed = records.read(RESULTS / "compare.jsonl"), records.read(RESULTS / "latency.jsonl")
    if compared:
        replace_table(ACCURACY, "compare", [*outcome.conditions(compared), "", outcome.table(compared)])
    if timed:
        replace_table(ACCURACY, "compare --against latency, means", [summary(timed)])
    for command, rows in (
        ("compare --against latency", timed),
        ("compare beyond", records.read(RESULTS / "beyond.jsonl")),
        ("compare short", records.read(RESULTS / "short.jsonl")),
    ):
        if rows:
            replace_table(ACCURACY, command, [*latency.conditions(rows), "", latency.table(rows)])
    for name in ("recipe", "elsewhere", "schedule", "restart"):
        rows = records.read(RESULTS / f"{name}.jsonl")
        if rows:
            replace_table(ACCURACY, f"compare {name}", [*outcome.conditions(rows), "", outcome.table(rows)])


def write_faults() -> None:
    """Rewrite the table of killed runs."""
    faults = records.read(RESULTS / "faults.jsonl")
    if faults:
        replace_table(RELIABILITY, "faults", [*_facts(faults), records.markdown(faults, FAULT_COLUMNS)])


def write_speed() -> None:
    """Rewrite the tables of speed."""
    speed = records.read(RESULTS / "speed.jsonl")
    steps = ("steps", "variants", "neurons", "teaching", "frozen", "run")
    for section in (*steps, "built", "predicted", "finalize", "reload", "growth"):
        rows = [row for row in speed if row["section"] == section]
        if rows:
            columns = {"what": "", "case": "case", "ratio": "ratio", **_extras(rows), "device": "device"}
            replace_table(PAGE, f"speed {section}", [*_facts(rows), records.markdown(rows, columns)])
    grid = [row for row in speed if row["section"] in ("speedup", "michel")]
    if grid:
        replace_table(PAGE, "speed speedup michel", [*_facts(grid), speedup_table(grid)])


def write_rivals() -> None:
    """Rewrite the table of other libraries."""
    removals = latest(records.read(RESULTS / "rivals.jsonl"))
    if removals:
        shown = [rivals.readable(row) for row in removals]
        replace_table(
            PAGE, "rivals", [*_facts(removals), records.markdown(shown, rivals.COLUMNS), "", *rivals.notes(removals)]
        )


def write_sharding() -> None:
    """Rewrite the tables of models that are cut over several processes."""
    stored = records.read(RESULTS / "sharding.jsonl")
    for section, table in sharding.TABLES.items():
        rows = [row for row in stored if row["section"] == section]
        if rows:
            lines = [*_facts(rows), *sharding.markdown_lines(*table(rows))]
            replace_table(SEVERAL_GPUS, f"sharding {section}", lines)


def write_serving() -> None:
    """Rewrite the tables of other runtimes."""
    stored = records.read(RESULTS / "serving.jsonl")
    for section, table in serving.TABLES.items():
        rows = [row for row in stored if row["section"] == section]
        if rows:
            replace_table(SERVING, f"serving {section}", [*_facts(rows), *table(rows)])


def write_embeddings() -> None:
    """Rewrite the tables of embedding models."""
    stored = records.read(RESULTS / "embeddings.jsonl")
    texts, lines = ([row for row in stored if row["section"] == section] for section in ("texts", "lines"))
    if texts:
        replace_table(EMBEDDINGS, "embeddings texts", embeddings.texts_table(texts))
    if lines:
        replace_table(
            EMBEDDINGS, "embeddings lines", [*sorted(set(map(describe, lines))), "", *embeddings.quality_table(lines)]
        )
        replace_table(EMBEDDINGS, "embeddings lines, runtimes", embeddings.runtimes_table(lines))
        replace_table(README, "embeddings lines, summary", embeddings.summary_table(lines))


def latest(rows: Sequence[Row]) -> list[Row]:
    """Return the rows of the last commit that was measured."""
    return [row for row in rows if row["commit"] == rows[-1]["commit"] and not row["quick"]]


def speedup_table(rows: Sequence[Row]) -> str:
    """Return speed-ups with a row for each batch and a column for each share of heads: measured, and allowed."""
    shares = sorted({_share(row) for row in rows}, key=lambda text: -float(text.rstrip("%")))
    cases: dict[str, Row] = {}
    for row in rows:
        middle, low, high = row["ratio"]
        cell = f"{middle:.2f} ({low:.2f}-{high:.2f}) of {row['flops_allow']:.2f}"
        cases.setdefault(row["case"], {"case": row["case"], "device": row["device"]})[_share(row)] = cell
    columns = {"case": "batch x length", **{share: f"{share} of the heads" for share in shares}, "device": "device"}
    return records.markdown(cases.values(), columns)


def write_frozen() -> None:
    """Rewrite the table of gates on frozen weights."""
    rows = records.read(frozen.RESULTS)
    if rows:
        replace_table(FROZEN, "frozen", frozen.table(rows))


def write_decoders() -> None:
    """Rewrite the tables of decoders, and of the memory of their training."""
    stored, measured = records.read(RESULTS / "decoders.jsonl"), records.read(memory.RESULTS)
    for section, option in (("quality", ""), ("quantized", " --quantized"), ("speed", " --speed")):
        rows = [row for row in stored if row["section"] == section]
        if rows:
            replace_table(DECODERS, f"decoders{option}", decoders.TABLES[section](rows))
    quality, speed = ([row for row in stored if row["section"] == section] for section in ("quality", "speed"))
    if quality:
        replace_table(README, "decoders, summary", decoders.summary_table(quality, speed))
    if measured:
        replace_table(DECODERS, "memory", memory.table(measured))


def replace_table(page: Path, command: str, lines: Sequence[str]) -> None:
    """Replace the text on a page between the marks of a command.

    Raises:
        ValueError: The page has no such marks.
    """
    begin, end = f"<!-- begin: python -m benchmarks.{command} -->", "<!-- end -->"
    text = page.read_text(encoding="utf-8")
    before, found, rest = text.partition(begin)
    if not found or end not in rest:
        raise ValueError(f"{page} has no place for a table: {begin} and {end} on lines of their own.")
    table = "\n".join(lines)
    page.write_text(f"{before}{begin}\n{table}\n{end}{rest.partition(end)[2]}", encoding="utf-8")


def _share(row: Row) -> str:
    return row["what"].partition(" at ")[2].partition(" ")[0]


def _extras(rows: Sequence[Row]) -> dict[str, str]:
    titles = {
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
    return {name: title for name, title in titles.items() if any(row.get(name) is not None for row in rows)}


def _facts(rows: Sequence[Row]) -> list[str]:
    """Return the machines of rows, a line for each."""
    machines = {f"{describe(row)}, commit {row['commit']}" for row in rows}
    return [*sorted(machines), ""]


if __name__ == "__main__":
    main()
