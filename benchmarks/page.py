"""Write the tables of the README and docs from benchmarks/results.

    python -m benchmarks.page

Run it after a benchmark; the pages explain the tables.
"""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import example, faults, frozen, memory, records, tasks
from benchmarks.census.page import PAGE as COVERAGE
from benchmarks.census.page import coverage
from benchmarks.compare import latency, outcome
from benchmarks.damage import __main__ as damage
from benchmarks.decoders import tables as decoders
from benchmarks.embeddings import tables as embeddings
from benchmarks.measuring import RESULTS, ROOT
from benchmarks.rivals import __main__ as rivals
from benchmarks.serving import tables as serving
from benchmarks.sharding import tables as sharding
from benchmarks.speed import tables as speed
from benchmarks.versions import __main__ as versions
from benchmarks.versions.subjects import example_code, example_record

README = ROOT / "README.md"
ACCURACY = ROOT / "docs" / "accuracy.md"
RELIABILITY = ROOT / "docs" / "reliability.md"
SPEED = ROOT / "docs" / "speed.md"
SEVERAL_GPUS = ROOT / "docs" / "howto" / "several-gpus.md"
SERVING = ROOT / "docs" / "serving.md"
EMBEDDINGS = ROOT / "docs" / "embeddings.md"
DECODERS = ROOT / "docs" / "decoders.md"
TRAVELS = ROOT / "docs" / "what-travels.md"


class Table(NamedTuple):
    """A table: its page, the command in its mark, the name of its results, and the function that makes its lines."""

    page: Path
    command: str
    results: str
    lines: Callable[[list[dict[str, Any]]], Sequence[str]]
    section: str = ""

    def render(self) -> str:
        """Return the table; empty if there are no results."""
        rows = records.read(RESULTS / f"{self.results}.jsonl")
        rows = [row for row in rows if not self.section or row["section"] == self.section]
        return "\n".join(self.lines(rows)) if rows else ""


TABLES = [
    Table(ACCURACY, "example", "embedded", example.table),
    Table(ACCURACY, "compare", "compare", outcome.lines),
    Table(ACCURACY, "compare --against latency, means", "latency", latency.summary),
    Table(ACCURACY, "compare --against latency", "latency", latency.lines),
    *(Table(ACCURACY, f"compare {name}", name, latency.lines) for name in ("beyond", "short")),
    *(
        Table(ACCURACY, f"compare {name}", name, outcome.lines)
        for name in ("recipe", "elsewhere", "schedule", "restart")
    ),
    Table(ROOT / "docs" / "tasks.md", "tasks", "tasks", tasks.lines),
    Table(RELIABILITY, "faults", "faults", faults.table),
    Table(RELIABILITY, "damage", "damage", damage.table),
    *(Table(SPEED, f"speed {name}", "speed", speed.table, name) for name in speed.SECTIONS),
    Table(SPEED, "speed speedup michel", "speed", speed.speedups),
    Table(SPEED, "rivals", "rivals", rivals.table),
    *(
        Table(SERVING, f"serving {name}", "serving", partial(serving.show, table), name)
        for name, table in serving.TABLES.items()
    ),
    *(Table(SEVERAL_GPUS, f"sharding {name}", "sharding", table, name) for name, table in sharding.TABLES.items()),
    Table(EMBEDDINGS, "embeddings texts", "embeddings", embeddings.texts_table, "texts"),
    Table(EMBEDDINGS, "embeddings lines", "embeddings", embeddings.quality_table, "lines"),
    Table(EMBEDDINGS, "embeddings lines, runtimes", "embeddings", embeddings.runtimes_table, "lines"),
    Table(README, "embeddings lines, summary", "embeddings", embeddings.summary_table, "lines"),
    Table(ROOT / "docs" / "howto" / "frozen.md", "frozen", "frozen", frozen.table),
    Table(DECODERS, "decoders", "decoders", decoders.quality_table, "quality"),
    Table(DECODERS, "decoders --quantized", "decoders", decoders.quantized_table, "quantized"),
    Table(DECODERS, "decoders --speed", "decoders", decoders.speed_table, "speed"),
    Table(DECODERS, "decoders, summary", "decoders", decoders.summary_table),
    Table(DECODERS, "memory", "memory", memory.table),
    Table(TRAVELS, "versions", "versions", versions.table),
    # Of this commit: they need no results.
    Table(TRAVELS, "versions, record", "versions", example_record),
    Table(TRAVELS, "versions, code", "versions", example_code),
]


def main() -> None:
    """Rewrite every table whose results are there."""
    argparse.ArgumentParser(
        prog="python -m benchmarks.page", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    for table in TABLES:
        if text := table.render():
            replace_table(table.page, table.command, [text])
    COVERAGE.write_text(coverage(records.read(RESULTS / "census.jsonl")), encoding="utf-8")


def replace_table(page: Path, command: str, lines: Sequence[str]) -> None:
    """Replace the text on a page between the marks of a command.

    Raises:
        ValueError: The page has no such marks.
    """
    begin, end = f"<!-- begin: python -m benchmarks.{command} -->", "<!-- end -->"
    before, found, rest = page.read_text(encoding="utf-8").partition(begin)
    if not found or end not in rest:
        raise ValueError(f"{page} has no place for a table: {begin} and {end} on lines of their own.")
    table = "\n".join(lines)
    page.write_text(f"{before}{begin}\n{table}\n{end}{rest.partition(end)[2]}", encoding="utf-8")


if __name__ == "__main__":
    main()
