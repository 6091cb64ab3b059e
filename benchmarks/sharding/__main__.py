"""Measure models that are cut over several processes: memory, training steps, removal and loading.

    python -m benchmarks.sharding                   everything; about half an hour on two cores, 16 GB of memory
    python -m benchmarks.sharding removal growth    some sections
    python -m benchmarks.sharding --quick           tiny models, to see that it works; nothing is written

Models are LLaMA-like with random weights in single precision; the largest has the layers of TinyLlama 1.1B, and a small
vocabulary. Each process has a GPU where there are enough (NCCL), and the CPU elsewhere (gloo). Memory of the CPU is
counted by Linux. Results are in benchmarks/results/sharding.jsonl, a line for each case with a value of each process; a
new one replaces that of the same kind.
"""

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers.utils.logging import disable_progress_bar

from benchmarks import records
from benchmarks.measuring import RESULTS, machine
from benchmarks.sharding.memory import MALLOC
from benchmarks.sharding.models import save
from benchmarks.sharding.processes import has_gpus, run_in_processes
from benchmarks.sharding.tables import TABLES

Row = dict[str, Any]
Shape = tuple[int, int]

OUTPUT = RESULTS / "sharding.jsonl"
# Width and number of layers of the model that is used before measurements of memory.
WARM_UP = (128, 2)
_BOTH = ["heads", "neurons"]


class Case(NamedTuple):
    """One measurement: its section, the model's width and layers, the number of processes, and arguments."""

    section: str
    shape: Shape
    processes: int
    arguments: Row


# Section -> module of this package and function that measures.
FUNCTIONS = {
    "state": "training:count_state",
    "steps": "training:time_steps",
    "removal": "removal:remove",
    "growth": "removal:remove",
    "loading": "removal:load",
}


def full_cases() -> Iterator[Case]:
    """Yield all cases; only the training state is counted with three processes, too."""
    small: list[Shape] = [(256, 4), (512, 8), (1024, 8)]
    for processes in (2, 3):
        for shape in [*small, (2048, 8)]:
            yield Case("state", shape, processes, {})
    for shape in [*small, (2048, 2)]:
        yield Case("steps", shape, 2, {"batch_size": 4, "length": 128, "rounds": 7})
    for shape, repeats in (((256, 4), 3), ((512, 8), 3), ((1024, 16), 1), ((2048, 22), 1)):
        for units in (["heads"], _BOTH):
            yield Case("removal", shape, 2, {"units": units, "repeats": repeats})
    for layers in (2, 4, 8, 16):
        yield Case("growth", (1024, layers), 2, {"units": _BOTH, "repeats": 3})
    for shape in ((512, 8), (1024, 16), (2048, 22)):
        for sharded in (True, False):
            yield Case("loading", shape, 2, {"sharded": sharded})


def quick_cases() -> Iterator[Case]:
    """Yield a small case or two of each section."""
    shape = (192, 2)
    yield Case("state", shape, 2, {})
    yield Case("steps", shape, 2, {"batch_size": 1, "length": 16, "rounds": 3})
    yield Case("removal", shape, 2, {"units": _BOTH, "repeats": 1})
    for layers in (1, 2):
        yield Case("growth", (192, layers), 2, {"units": ["heads"], "repeats": 1})
    for sharded in (True, False):
        yield Case("loading", shape, 2, {"sharded": sharded})


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sharding", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    shown = f"some of: {', '.join(TABLES)}; all by default"
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=shown)
    parser.add_argument("--quick", action="store_true", help="tiny models; nothing is written")
    options = parser.parse_args(arguments)
    if unknown := set(options.sections) - set(TABLES):
        parser.error(f"there is no section {sorted(unknown)[0]!r}; choose from {', '.join(TABLES)}")
    torch.set_num_threads(1)
    disable_progress_bar()
    sections = options.sections or TABLES
    cases = [case for case in (quick_cases() if options.quick else full_cases()) if case.section in sections]
    rows = []
    for row in measure(cases, together=options.quick):
        rows.append(row)
        print(row["section"], row["hidden"], row["layers"], flush=True)
        if not options.quick:
            records.replace(OUTPUT, row, _key)
    for section in sections:
        print("\n".join(["", *TABLES[section]([row for row in rows if row["section"] == section])]))


def measure(cases: Sequence[Case], *, together: bool) -> Iterator[Row]:
    """Yield the results of cases, which have processes of their own unless they are measured together."""
    with tempfile.TemporaryDirectory(prefix="head-gating-sharding-models-") as name:
        folders = {shape: f"{name}/{shape[0]}-{shape[1]}" for shape in {WARM_UP, *(case.shape for case in cases)}}
        for shape, folder in folders.items():
            save(Path(folder), *shape)
        for group in [cases] if together else [[case] for case in cases]:
            calls = []
            for case in group:
                warm_up = {"warm_up": folders[WARM_UP]} if FUNCTIONS[case.section].startswith("removal") else {}
                calls.append((FUNCTIONS[case.section], {"folder": folders[case.shape], **case.arguments, **warm_up}))
            environment = {} if group[0].section == "steps" else MALLOC
            values = run_in_processes(calls, group[0].processes, **environment)
            yield from map(_row, group, values)


def _row(case: Case, by_rank: list[Row]) -> Row:
    """Return the result of a case: a list with a value of each rank for each of its values."""
    hidden, layers = case.shape
    values = {name: [value[name] for value in by_rank] for name in by_rank[0]}
    about = {"section": case.section, "hidden": hidden, "layers": layers, "processes": case.processes}
    facts, on_gpus = machine(), has_gpus(case.processes)
    facts["gpu"] = facts["gpu"] if on_gpus else None
    return {**about, **case.arguments, **values, "device": "cuda" if on_gpus else "cpu", **facts}


def _key(row: records.Row) -> tuple[Any, ...]:
    kept = ("section", "hidden", "layers", "processes", "units", "sharded", "batch_size", "device")
    return tuple(row.get(name) for name in kept)


if __name__ == "__main__":
    main()
