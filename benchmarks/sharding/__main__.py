"""Measure models that are cut over several processes: memory, training steps, removal and loading.

    python -m benchmarks.sharding                   everything; about half an hour on two cores, 16 GB of memory
    python -m benchmarks.sharding removal growth    some sections
    python -m benchmarks.sharding --quick           tiny models, to see that it works; nothing is written

Models are LLaMA-like with random weights in single precision; the largest has the layers of TinyLlama 1.1B, and a small
vocabulary. Each process has a GPU where there are enough (NCCL), and the CPU elsewhere (gloo). Memory of the CPU is
counted by Linux. Results are in benchmarks/results/sharding.jsonl, a line for each case with a value of each process; a
new one replaces that of the same kind. ``python -m benchmarks.page`` writes the tables of docs/howto/several-gpus.md.
"""

import argparse
import itertools
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers.utils.logging import disable_progress_bar

from benchmarks import records
from benchmarks.measuring import ROOT, describe, machine
from benchmarks.sharding.cases import SECTIONS, WARM_UP, Case, Shape, full_cases, quick_cases
from benchmarks.sharding.memory import MALLOC
from benchmarks.sharding.models import save
from benchmarks.sharding.processes import has_gpus, run_in_processes
from benchmarks.sharding.tables import TABLES

__all__ = ["RESULTS", "main"]

Row = dict[str, Any]

# Of the widest table.
_WIDTH = 160
RESULTS = ROOT / "benchmarks" / "results" / "sharding.jsonl"


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Measure, print and record; return the results."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    disable_progress_bar()
    console, rows = Console(highlight=False, width=_WIDTH), []
    cases = (quick_cases if options.quick else full_cases)(options.sections, options.processes)
    for measured in measure(cases, together=options.quick):
        rows += measured
        for row in measured if not options.quick else ():
            replace(row)
        for section, its_rows in itertools.groupby(measured, lambda row: row["section"]):
            _print(console, section, list(its_rows))
    return rows


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sharding", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "sections", nargs="*", metavar="SECTION", help=f"some of: {', '.join(SECTIONS)}; all by default"
    )
    parser.add_argument(
        "--processes", type=int, nargs="+", default=[2, 3], help="numbers of processes; the first for all but the state"
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each process (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="tiny models; nothing is written")
    options = parser.parse_args(arguments)
    unknown = set(options.sections) - set(SECTIONS)
    if unknown:
        parser.error(f"there is no section {sorted(unknown)[0]!r}; choose from {', '.join(SECTIONS)}")
    options.sections = options.sections or list(SECTIONS)
    return options


def measure(cases: Sequence[Case], *, together: bool) -> Iterator[list[Row]]:
    """Yield the results of cases with the facts about the machine, in lists as they are measured.

    Args:
        cases: The cases, in the order of sections and numbers of processes.
        together: Whether the same processes measure all sections.
    """
    with tempfile.TemporaryDirectory(prefix="head-gating-sharding-models-") as name:
        folders: dict[Shape, str] = {}
        for shape in dict.fromkeys([WARM_UP, *(case.shape for case in cases)]):
            folders[shape] = f"{name}/{shape[0]}-{shape[1]}"
            save(Path(folders[shape]), *shape)
        for (section, processes), group in itertools.groupby(
            cases, lambda case: ("" if together else case.section, case.processes)
        ):
            its_cases = list(group)
            values = run_in_processes(
                [(case.function, _arguments(case, folders)) for case in its_cases],
                processes,
                environment={} if section == "steps" else MALLOC,
            )
            yield [_row(case, by_rank) for case, by_rank in zip(its_cases, values, strict=True)]


def replace(row: Row) -> None:
    """Write a result in the place of the one of the same kind."""
    rows = [other for other in records.read(RESULTS) if _key(other) != _key(row)]
    records.write(RESULTS, [*rows, row])


def _arguments(case: Case, folders: dict[Shape, str]) -> Row:
    needs_warm_up = case.function.startswith(("loading", "removal"))
    return {
        "folder": folders[case.shape],
        **case.arguments,
        **({"warm_up": folders[WARM_UP]} if needs_warm_up else {}),
    }


def _row(case: Case, by_rank: list[Row]) -> Row:
    """Return the result of a case: a list with a value of each rank for each of its values."""
    hidden, layers = case.shape
    values = {name: [value[name] for value in by_rank] for name in by_rank[0]}
    about = {"section": case.section, "hidden": hidden, "layers": layers, "processes": case.processes}
    facts, on_gpus = machine(), has_gpus(case.processes)
    facts["gpu"] = facts["gpu"] if on_gpus else None
    return {**about, **case.arguments, **values, "device": "cuda" if on_gpus else "cpu", **facts}


def _key(row: Row) -> tuple[Any, ...]:
    return tuple(
        row.get(name)
        for name in ("section", "hidden", "layers", "processes", "units", "sharded", "batch_size", "device")
    )


def _print(console: Console, section: str, rows: list[Row]) -> None:
    cells, notes = TABLES[section](rows)
    table = Table(title=f"{section}: {describe(rows[0])}", title_justify="left")
    for heading in cells[0]:
        table.add_column(heading, justify="left" if heading == "model" else "right")
    for row in cells:
        table.add_row(*row.values())
    console.print(table)
    for note in notes:
        console.print(note)


if __name__ == "__main__":
    main()
