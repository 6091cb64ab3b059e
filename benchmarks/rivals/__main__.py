"""Removing the same heads from the same models with other libraries.

    python -m benchmarks.rivals
    python -m benchmarks.rivals --quick    small models, to see that it runs; nothing is written

Beside head-gating: torch-pruning from PyPI, with its pruner and with its dependency graph, and ``prune_heads`` of
transformers 4 in a virtual environment of its own; both are installed into ~/.cache/head-gating when they are missing.
Models have the shapes of BERT-base and ViT-base and random weights, so nothing is downloaded but packages.

A method works when exactly the named heads are gone and the outputs are those of the masked model. Latency is a ratio
to the dense model, and to head-gating's compact model where both can be in one process; times are taken in turns.
"""

import argparse
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import transformers

from benchmarks import records
from benchmarks.measuring import RESULTS, machine
from benchmarks.rivals.cases import CASES, MODELS, heads_to_remove, make_subject
from benchmarks.rivals.elsewhere import TRANSFORMERS4, ask_transformers4, torch_pruning_version, transformers4_python
from benchmarks.rivals.removal import METHODS, OURS, Timing, compare

Row = dict[str, Any]

OUTPUT = RESULTS / "rivals.jsonl"
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


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, append the results to a file and print them as a table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.rivals", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--quick", action="store_true", help="small models and few repeats; nothing is written")
    options = parser.parse_args(arguments)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    facts = {"quick": options.quick, **machine()}
    rows = []
    for row in measure(options.cases, quick=options.quick):
        rows.append({**row, **facts})
        if not options.quick:
            records.append(OUTPUT, rows[-1])
        print(f"{row['model']}, {row['case']}: {row['method']} {row.get('error', 'works')}", file=sys.stderr)
    print("\n".join(table(rows)))


def measure(cases: Sequence[str], *, quick: bool) -> Iterator[Row]:
    """Yield a row for each model, case and method."""
    timing = Timing(rounds=3, surgeries=3) if quick else Timing(rounds=15, surgeries=5)
    batch_size, length = (2, 16) if quick else (8, 128)
    methods, python, versions = find_rivals()
    for model in MODELS:
        subject = make_subject(model, batch_size=batch_size, length=length, small=quick)
        heads_of = {case: heads_to_remove(case, subject) for case in cases}
        elsewhere = ask_transformers4(python, subject, heads_of, timing) if python else {}
        for case, heads in heads_of.items():
            rows = compare(subject, heads, methods, timing)
            rows += [elsewhere[case]] if case in elsewhere else []
            for row in rows:
                about = {"model": model, "case": case, "batch_size": batch_size, "length": length}
                yield {**about, **row, "version": versions[row["method"].partition(",")[0]]}


def find_rivals() -> tuple[list[str], str | None, dict[str, str]]:
    """Return the methods that work here, the interpreter that has transformers 4, and all versions.

    What pip cannot install is left out.
    """
    methods, python, versions = [OURS], None, {OURS: transformers.__version__}
    try:
        versions["torch-pruning"] = torch_pruning_version()
        methods = list(METHODS)
        python, versions[TRANSFORMERS4] = transformers4_python()
    except (OSError, subprocess.CalledProcessError) as reason:
        print(f"Left out: {reason}", file=sys.stderr)
    return methods, python, versions


def table(rows: Sequence[Row]) -> list[str]:
    """Return the results of the last commit that was measured, the requirements of each method, and the errors."""
    rows = [row for row in rows if row["commit"] == rows[-1]["commit"]]
    shown = [{name: "no" if _is_error(name, row.get(name)) else row.get(name) for name in COLUMNS} for row in rows]
    needs = [f"- {method} {NEEDS[method]}" for method in {row["method"]: None for row in rows}]
    errors: dict[str, list[str]] = {}
    for row in rows:
        for name in ("error", *RELOADS):
            if name in row and _is_error(name, row[name]):
                errors.setdefault(f"{row['method']}: {COLUMNS.get(name, name)}: {row[name]}", []).append(row["case"])
    notes = [f"- {error} ({', '.join(dict.fromkeys(cases))})" for error, cases in errors.items()]
    return [*records.facts(rows), records.markdown(shown, COLUMNS), "", *needs, *notes]


def _is_error(name: str, value: object) -> bool:
    return name == "error" or (name in RELOADS and value not in (None, "yes"))


if __name__ == "__main__":
    main()
