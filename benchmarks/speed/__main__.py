"""Measure speed as ratios, and print them beside the last committed ones.

    python -m benchmarks.speed                  everything; half an hour on two cores
    python -m benchmarks.speed steps finalize   some sections
    python -m benchmarks.speed --quick          tiny models, to see that it works; nothing is written

Results are in benchmarks/results/speed.jsonl, a line for each measurement; a new one replaces that of the same kind.
"""

import argparse
import json
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import torch
from rich.console import Console
from transformers.utils.logging import disable_progress_bar

from benchmarks import records
from benchmarks.measuring import ROOT, machine
from benchmarks.speed.growth import measure_growth
from benchmarks.speed.latency import measure_against_built, measure_michel, measure_speedup
from benchmarks.speed.neurons import measure_neurons
from benchmarks.speed.predicted import measure_predicted
from benchmarks.speed.runs import measure_runs
from benchmarks.speed.surgery import measure_finalize, measure_reload
from benchmarks.speed.teaching import measure_frozen, measure_teaching
from benchmarks.speed.training import measure_steps, measure_variants

Row = dict[str, Any]

RESULTS = ROOT / "benchmarks" / "results" / "speed.jsonl"
SECTIONS: dict[str, Callable[..., Iterator[Row]]] = {
    "steps": measure_steps,
    "variants": measure_variants,
    "neurons": measure_neurons,
    "teaching": measure_teaching,
    "frozen": measure_frozen,
    "run": measure_runs,
    "built": measure_against_built,
    "predicted": measure_predicted,
    "speedup": measure_speedup,
    "michel": measure_michel,
    "finalize": measure_finalize,
    "reload": measure_reload,
    "growth": measure_growth,
}


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "sections", nargs="*", metavar="SECTION", help=f"some of: {', '.join(SECTIONS)}; all by default"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1: two that compete are slower)")
    parser.add_argument("--quick", action="store_true", help="tiny models; nothing is written")
    arguments = parser.parse_args()
    unknown = set(arguments.sections) - set(SECTIONS)
    if unknown:
        parser.error(f"there is no section {sorted(unknown)[0]!r}; choose from {', '.join(SECTIONS)}")
    torch.set_num_threads(arguments.threads)
    disable_progress_bar()
    missed = run(arguments.sections or list(SECTIONS), torch.device(arguments.device), quick=arguments.quick)
    print(f"\n{missed} of the goals missed" if missed else "\nEvery goal reached")


def run(sections: list[str], device: torch.device, *, quick: bool) -> int:
    """Measure sections and return how many goals were missed."""
    before = {_key(row): row for row in committed()}
    facts, console, missed = {"device": device.type, **machine()}, Console(highlight=False, soft_wrap=True), 0
    console.print(", ".join(f"{name} {value}" for name, value in facts.items() if value is not None))
    for section in sections:
        console.print(f"\n[bold]{section}[/bold]")
        for numbers in SECTIONS[section](device, quick=quick):
            row = {"section": section, **numbers, **facts}
            if quick:
                # Goals are for models that people use.
                row.pop("at_most", None)
            missed += goal_missed(row)
            console.print(describe(row, before.get(_key(row))))
            if not quick:
                replace(row)
    return missed


def describe(row: Row, before: Row | None) -> str:
    """Return a line that a person reads: today's ratio, the last committed one, and the goal."""
    middle, low, high = row["ratio"]
    line = f"  {row['what']:64} {row['case']:34} {middle:6.3f}  ({low:.3f} to {high:.3f})"
    if before is not None:
        line += f"  was {before['ratio'][0]:.3f}"
    if row.get("at_most") is not None:
        line += f"  goal {row['at_most']:.2f} " + (
            "[red]missed[/red]" if goal_missed(row) else "[green]reached[/green]"
        )
    for name, text in (
        ("flops_allow", "arithmetic allows {:.2f}"),
        ("near", "{:.0%} within 5 %"),
        ("seconds", "{:.2f} s"),
        ("finalize_s", "{:.2f} s"),
    ):
        line += f"  {text.format(row[name])}" if name in row else ""
    return line


def goal_missed(row: Row) -> bool:
    """Return whether the median ratio is above its goal."""
    return row.get("at_most") is not None and row["ratio"][0] > row["at_most"]


def committed() -> list[Row]:
    """Return the results of the last commit; none outside of a checkout."""
    path = RESULTS.relative_to(ROOT)
    done = subprocess.run(["git", "-C", str(ROOT), "show", f"HEAD:{path}"], capture_output=True, text=True, check=False)
    return [json.loads(line) for line in done.stdout.splitlines()]


def replace(row: Row) -> None:
    """Write a result in the place of the one of the same kind."""
    rows = [other for other in records.read(RESULTS) if _key(other) != _key(row)]
    records.write(RESULTS, [*rows, row])


def _key(row: Row) -> tuple[str, ...]:
    return row["section"], row["what"], row["case"], row["device"]


if __name__ == "__main__":
    main()
