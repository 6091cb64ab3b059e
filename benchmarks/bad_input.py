"""Try bad input of every kind many times, and write the table of docs/reliability.md.

    python -m benchmarks.bad_input                  200 cases of each kind, 60 whole runs; ten minutes
    python -m benchmarks.bad_input --cases 20 masks  fewer of one kind; nothing is written

The cases are those of tests/support/bad_input.py. Each has to give a right result or one sentence; anything else is
printed.
"""

import argparse
import sys
import traceback
from collections import Counter
from typing import Any

import datasets
import torch
from hypothesis import HealthCheck, Phase, given, settings

from benchmarks import records
from benchmarks.measuring import ROOT
from benchmarks.page import replace_table
from gating.tracking.verbosity import quiet_libraries
from tests.support.bad_input import AREAS, Area, outcome

__all__ = ["count", "main"]

PAGE = ROOT / "docs" / "reliability.md"


def main(arguments: list[str] | None = None) -> None:
    """Try, count and rewrite the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bad_input", description=__doc__.splitlines()[0])
    parser.add_argument("areas", nargs="*", metavar="KIND", help=f"some of: {', '.join(AREAS)}; all by default")
    parser.add_argument("--cases", type=int, default=200, help="how many cases of each kind")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    quiet_libraries()
    datasets.disable_progress_bars()
    rows = []
    for name in options.areas or AREAS:
        counts = count(AREAS[name], cases=options.cases // AREAS[name].cost)
        columns = {"result": counts["result"], "sentence": counts["sentence"], "FAIL": counts["FAIL"]}
        rows.append({"kind": name, "cases": sum(columns.values()), **columns})
        print(rows[-1], flush=True)
    if not options.areas and options.cases == parser.get_default("cases"):
        columns = {"kind": "kind of input", "cases": "cases", "result": "right result", "sentence": "one sentence"}
        replace_table(PAGE, "bad_input", records.markdown(rows, {**columns, "FAIL": "anything else"}).splitlines())
    sys.exit(1 if any(row["FAIL"] for row in rows) else 0)


def count(area: Area, *, cases: int) -> Counter[str]:
    """Try cases of a kind and count their outcomes; print those that are not allowed."""
    counts: Counter[str] = Counter()
    seen: set[str] = set()

    @settings(
        max_examples=cases,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(area.cases)
    def check(case: Any) -> None:
        try:
            counts[outcome(area, case)] += 1
        except Exception as error:
            counts["FAIL"] += 1
            place = traceback.extract_tb(error.__traceback__)[-1]
            if f"{place.filename}:{place.lineno}" not in seen:
                seen.add(f"{place.filename}:{place.lineno}")
                print(
                    f"FAIL {case!r}\n  {type(error).__name__}: {error}\n  {place.filename}:{place.lineno}", flush=True
                )

    check()
    return counts


if __name__ == "__main__":
    main()
