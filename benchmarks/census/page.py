"""The page docs/coverage.md, from the results of the census."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.measuring import ROOT

__all__ = ["write_page"]

PAGE = ROOT / "docs" / "coverage.md"
Row = Mapping[str, Any]


def write_page(rows: Sequence[Row]) -> None:
    """Write the page from results."""
    PAGE.write_text("\n".join(_lines(rows)) + "\n", encoding="utf-8")


def _lines(rows: Sequence[Row]) -> list[str]:
    return [str(Counter(row["outcome"] for row in rows)), str(defaultdict(list))]
