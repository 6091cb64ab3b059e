"""Write the tables of the README and docs from benchmarks/results.

    python -m benchmarks.page

Run it after a benchmark; the pages explain the tables.
"""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import faults, frozen, memory, records, rivals, sharding, tasks, unlabeled, untrained
from benchmarks.census.page import PAGE as COVERAGE
from benchmarks.census.page import coverage
from benchmarks.compare import latency, plans
from benchmarks.damage import __main__ as damage
from benchmarks.decoders import tables as decoders
from benchmarks.embeddings import tables as embeddings
from benchmarks.measuring import RESULTS, ROOT
from benchmarks.serving import tables as serving
from benchmarks.speed import tables as speed
from benchmarks.versions import __main__ as versions
from benchmarks.versions.subjects import example_code, example_record

README = ROOT / "README.md"
ACCURACY = ROOT / "docs" / "accuracy.md"
SPEED = ROOT / "docs" / "speed.md"
RELIABILITY = ROOT / "docs" / "reliability.md"
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
    Table(README, "compare example", "example", partial(latency.lines, has_minutes=True)),
    Table(ACCURACY, "untrained", "untrained", untrained.table),
    Table(ACCURACY, "unlabeled", "unlabeled", unlabeled.table),
    Table(ACCURACY, "compare", "latency", latency.lines),
    Table(ACCURACY, "compare plans", "plans", plans.lines),
    Table(ACCURACY, "compare epochs", "epochs", latency.lines),
    Table(ACCURACY, "embeddings lines", "embeddings", embeddings.quality_table, "lines"),
    Table(ACCURACY, "decoders", "decoders", decoders.quality_table, "quality"),
    Table(ROOT / "docs" / "howto" / "frozen.md", "frozen", "frozen", frozen.table),
    Table(SPEED, "speed steps neurons", "speed", speed.training_table),
    Table(SPEED, "speed teaching frozen", "speed", partial(speed.ratio_table, ("teaching", "frozen"))),
    Table(SPEED, "speed built", "speed", partial(speed.ratio_table, ("built",))),
    Table(SPEED, "speed speedup", "speed", speed.speedups),
    Table(SPEED, "speed finalize reload", "speed", speed.finalize_table),
    Table(SPEED, "serving encoder", "serving", serving.encoder_table, "encoder"),
    Table(SPEED, "embeddings lines, runtimes", "embeddings", embeddings.runtimes_table, "lines"),
    Table(SPEED, "decoders --speed", "decoders", decoders.speed_table),
    Table(SPEED, "serving cache", "serving", serving.cache_table, "cache"),
    Table(ROOT / "docs" / "decoders.md", "memory", "memory", memory.table),
    Table(ROOT / "docs" / "howto" / "several-gpus.md", "sharding", "sharding", sharding.table),
    Table(SPEED, "rivals", "rivals", rivals.table),
    Table(ROOT / "docs" / "tasks.md", "tasks", "tasks", tasks.table),
    Table(RELIABILITY, "faults", "faults", faults.table),
    Table(RELIABILITY, "damage", "damage", damage.table),
    Table(RELIABILITY, "serving tokens", "serving", serving.tokens_table, "tokens"),
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
