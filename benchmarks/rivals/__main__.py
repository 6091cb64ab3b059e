"""Removing the same heads from the same models with other libraries.

    python -m benchmarks.rivals

Beside head-gating: torch-pruning from PyPI, with its pruner and with its dependency graph, and ``prune_heads`` of
transformers 4 in a virtual environment of its own; both are installed into ~/.cache/head-gating when they are missing.
Models have the shapes of BERT-base and ViT-base and random weights, so nothing is downloaded but packages.

A method works when exactly the named heads are gone and the outputs are those of the masked model. Latency is a ratio
to the dense model, and to head-gating's compact model where both can be in one process; times are taken in turns.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import transformers

from benchmarks import records
from benchmarks.measuring import ROOT, machine
from benchmarks.rivals.cases import CASES, MODELS, heads_to_remove, make_subject
from benchmarks.rivals.elsewhere import TRANSFORMERS4, ask_transformers4
from benchmarks.rivals.environments import Unavailable, torch_pruning_version, transformers4_python
from benchmarks.rivals.removal import METHODS, OURS, Timing, compare

RESULTS = ROOT / "benchmarks" / "results" / "rivals.jsonl"
COLUMNS = {
    "model": "model",
    "case": "case",
    "method": "method",
    "works": "works",
    "heads": "heads removed",
    "difference": "difference from masked",
    "latency_vs_dense": "latency / dense",
    "latency_vs_ours": "latency / head-gating",
    "seconds": "surgery, s",
    "seconds_vs_ours": "surgery / head-gating",
    "reloads": "reloads its own way",
    "from_pretrained": "from_pretrained",
}
RELOADS = ("reloads", "from_pretrained")
NEEDS = {
    OURS: "needs the numbers of the heads; it reloads with load_compact.",
    "torch-pruning, pruner": "needs a batch to trace, an importance that ranks the named heads lowest, the list of all "
    "other layers as ignored, a pruning_ratio above 0 that prunes nothing; it reloads as a pickle of the whole model, "
    "which may run any code.",
    "torch-pruning, graph": "needs a batch to trace, the rows of the heads, and to leave out check_pruning_group where "
    "a layer is emptied; it reloads as a pickle of the whole model, which may run any code.",
    TRANSFORMERS4: "needs transformers below 5; it reloads by from_pretrained, here in the process that saved.",
}


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Measure, append the results to a file and print them as a table."""
    options = parse(arguments)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    facts = {"quick": options.quick, "batch_size": options.batch_size, "length": options.length, **machine()}
    rows = []
    for row in measure(options):
        rows.append({**row, **facts})
        records.append(options.output, rows[-1])
        print(f"{row['model']}, {row['case']}: {row['method']} {row.get('error', 'works')}", file=sys.stderr)
    print_table(rows)
    return rows


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rivals", description=__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--rounds", type=int, default=15, help="how often each forward pass is timed")
    parser.add_argument("--surgeries", type=int, default=5, help="how often each removal is timed")
    parser.add_argument("--budget", type=float, default=60, help="seconds of timing after which a case ends early")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--length", type=int, default=128, help="tokens of each of BERT's examples")
    parser.add_argument("--env", type=Path, help="virtual environment with transformers 4, to use or to make")
    parser.add_argument("--no-install", dest="install", action="store_false", help="leave out what is not there")
    parser.add_argument("--quick", action="store_true", help="small models and few repeats, to see that it runs")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    if options.quick:
        options.rounds, options.surgeries, options.batch_size, options.length = 3, 3, 2, 16
    return options


def measure(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield a row for each model, case and method."""
    methods, python, versions = find_rivals(options)
    timing = Timing(rounds=options.rounds, surgeries=options.surgeries, budget_s=options.budget)
    for model in options.models:
        subject = make_subject(model, batch_size=options.batch_size, length=options.length, small=options.quick)
        cases = {case: heads_to_remove(case, subject) for case in options.cases}
        try:
            elsewhere = ask_transformers4(python, subject, cases, timing) if python else {}
        except Unavailable as reason:
            print(reason, file=sys.stderr)
            elsewhere = {}
        for case, heads in cases.items():
            rows = compare(subject, heads, methods, timing)
            rows += [elsewhere[case]] if case in elsewhere else []
            for row in rows:
                yield {"model": model, "case": case, **row, "version": versions[row["method"].partition(",")[0]]}


def find_rivals(options: argparse.Namespace) -> tuple[list[str], str | None, dict[str, str]]:
    """Return the methods that work here, the interpreter that has transformers 4, and all versions."""
    methods, python, versions = [OURS], None, {OURS: transformers.__version__}
    try:
        versions["torch-pruning"] = torch_pruning_version(install=options.install)
        methods = list(METHODS)
    except Unavailable as reason:
        print(reason, file=sys.stderr)
    try:
        python, versions[TRANSFORMERS4] = transformers4_python(options.env, install=options.install)
    except Unavailable as reason:
        print(reason, file=sys.stderr)
    return methods, python, versions


def print_table(rows: list[dict[str, Any]]) -> None:
    """Print the results, the requirements of each method, and the errors."""
    print(records.markdown(map(readable, rows), COLUMNS) + "\n")
    print("\n".join(notes(rows)))


def readable(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row without the texts of its errors, for a table."""
    return {name: "no" if _is_error(name, row.get(name)) else row.get(name) for name in COLUMNS}


def notes(rows: list[dict[str, Any]]) -> list[str]:
    """Return the requirements and errors of each method, as items of a list."""
    needs = [f"- {method} {NEEDS[method]}" for method in {row["method"]: None for row in rows}]
    errors: dict[str, list[str]] = {}
    for row in rows:
        for name in ("error", *RELOADS):
            if name in row and _is_error(name, row[name]):
                errors.setdefault(f"{row['method']}: {COLUMNS.get(name, name)}: {row[name]}", []).append(row["case"])
    return needs + [f"- {error} ({', '.join(dict.fromkeys(cases))})" for error, cases in errors.items()]


def _is_error(name: str, value: object) -> bool:
    return name == "error" or (name in RELOADS and value not in (None, "yes"))


if __name__ == "__main__":
    main()
