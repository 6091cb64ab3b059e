"""Measure every supported family and write the table of docs/families.md.

    python -m benchmarks.families

For each family and attention implementation, tiny random models lose random patterns of heads, of groups of neurons,
and of both, among them patterns with emptied and full layers and one that empties every layer. Shown is the largest
relative difference between masked and compact outputs over all patterns; for models that generate, whether models
without some heads and neurons give the same tokens in greedy search, beam search, and generation without a cache or
with a static one.
"""

import argparse
from itertools import cycle
from pathlib import Path

import torch
import transformers
from transformers.utils import logging

from benchmarks.page import replace_table
from gating.proof.outputs import forward_outputs, max_relative_difference
from tests.support.family_models import FAMILIES, Family
from tests.support.masked_models import Units, check_generation, compact, group_sizes

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "families.md"
# The last stands for the pattern that empties every layer.
SEEDS: tuple[int | None, ...] = (0, 1, 2, 3, 4, 5, 6, 7, None)
BOTH: Units = ("heads", "neurons")
COLUMNS: dict[str, Units] = {"heads": "heads", "neurons": "neurons", "both": BOTH}


def main() -> None:
    """Measure and rewrite the table between its marks."""
    argparse.ArgumentParser(
        prog="python -m benchmarks.families",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).parse_args()
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    lines = [
        f"transformers {transformers.__version__}, torch {torch.__version__}, float32 on a CPU, "
        f"{len(SEEDS)} patterns for each number and each attention implementation. Groups of 8, 1 and 7 of 48 neurons; "
        "in experts, groups of 8, 16 and 32.",
        "",
        f"| family | model class | attention | {' | '.join(COLUMNS)} | generates the same |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, family in sorted(FAMILIES.items()):
        lines.append(measure(name, family))
        print(lines[-1], flush=True)
    replace_table(PAGE, "families", lines)


def measure(name: str, family: Family) -> str:
    """Return the row of a family."""
    cells = [name, family.model, ", ".join(family.implementations)]
    for units in COLUMNS.values():
        if units != "heads" and not family.has_neurons:
            cells.append("-")
            continue
        differences = []
        for implementation in family.implementations:
            for seed, group_size in zip(SEEDS, cycle(group_sizes(family)), strict=False):
                model, masked, probe = compact(
                    family,
                    seed,
                    implementation=implementation,
                    group_queries=bool(seed),
                    units=units,
                    group_size=group_size,
                )
                differences.append(max_relative_difference(masked, forward_outputs(model, probe)))
        cells.append(f"{max(differences):.0e}" if max(differences) else "0")
    cells.append(generation(family) if family.generates else "-")
    return f"| {' | '.join(cells)} |"


def generation(family: Family) -> str:
    """Return in how many of the patterns generation gave the same tokens."""
    same = 0
    for seed in SEEDS:
        try:
            units = BOTH if family.has_neurons else "heads"
            check_generation(family, seed, group_queries=bool(seed), units=units)
            same += 1
        except AssertionError:
            pass
    return f"{same} of {len(SEEDS)}"


if __name__ == "__main__":
    main()
