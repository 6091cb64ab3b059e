"""Measure speed as ratios, and print them beside the last ones.

    python -m benchmarks.speed                  everything; about twenty minutes on two cores
    python -m benchmarks.speed steps finalize   some sections
    python -m benchmarks.speed --quick          tiny models, to see that it works; nothing is written

Results are in benchmarks/results/speed.jsonl, a line for each measurement; a new one replaces that of the same kind.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence

import torch
from transformers.utils.logging import disable_progress_bar

from benchmarks import records
from benchmarks.measuring import RESULTS, machine
from benchmarks.speed import compact, surgery, training
from benchmarks.speed.shapes import Bench, Row

OUTPUT = RESULTS / "speed.jsonl"
SECTIONS: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "steps": training.measure_steps,
    "neurons": training.measure_steps_of_both,
    "teaching": training.measure_teaching,
    "frozen": training.measure_frozen,
    "built": compact.measure_against_built,
    "speedup": compact.measure_speedup,
    "finalize": surgery.measure_finalize,
    "reload": surgery.measure_reload,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    shown = f"some of: {', '.join(SECTIONS)}; all by default"
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=shown)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1: two that compete are slower)")
    parser.add_argument("--quick", action="store_true", help="tiny models; nothing is written")
    options = parser.parse_args(arguments)
    if unknown := set(options.sections) - set(SECTIONS):
        parser.error(f"there is no section {sorted(unknown)[0]!r}; choose from {', '.join(SECTIONS)}")
    torch.set_num_threads(options.threads)
    disable_progress_bar()
    before = {_key(row): row for row in records.read(OUTPUT)}
    facts = {"device": torch.device(options.device).type, **machine()}
    print(", ".join(f"{name} {value}" for name, value in facts.items() if value is not None))
    for section in options.sections or SECTIONS:
        print(f"\n{section}")
        for numbers in SECTIONS[section](Bench(torch.device(options.device), options.quick)):
            row = {"section": section, **numbers, **facts}
            print(describe(row, before.get(_key(row))), flush=True)
            if not options.quick:
                records.replace(OUTPUT, row, _key)


def describe(row: Row, before: Row | None) -> str:
    """Return a line for a reader: today's ratio, the last one, and the goal."""
    middle, low, high = row["ratio"]
    line = f"  {row['what']:64} {row['case']:34} {middle:6.3f}  ({low:.3f} to {high:.3f})"
    line += f"  was {before['ratio'][0]:.3f}" if before is not None else ""
    goal = row.get("at_most")
    line += f"  goal {goal:.2f} {'missed' if middle > goal else 'reached'}" if goal is not None else ""
    for name, text in {
        "flops_allow": "arithmetic allows {:.2f}",
        "seconds": "{:.2f} s",
    }.items():
        line += f"  {text.format(row[name])}" if name in row else ""
    return line


def _key(row: records.Row) -> tuple[str, ...]:
    return row["section"], row["what"], row["case"], row["device"]


if __name__ == "__main__":
    main()
