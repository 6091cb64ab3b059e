"""Measure every supported family and write the table of docs/families.md.

    python -m benchmarks.families

For each family and attention implementation, tiny random models lose random patterns of heads, among them patterns
with emptied and full layers and one that empties every layer. Shown is the largest relative difference between masked
and compact outputs over all patterns; for models that generate, whether greedy search, beam search and generation
without a cache give the same tokens.
"""

import argparse
from pathlib import Path

import torch
import transformers
from transformers.utils import logging

from benchmarks.page import replace_table
from gating.discovery.probe import forward_outputs, max_relative_difference
from tests.support.family_models import FAMILIES, Family
from tests.support.masked_models import check_generation, compact

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "families.md"
# The last stands for the pattern that empties every layer.
SEEDS: tuple[int | None, ...] = (0, 1, 2, 3, 4, 5, 6, 7, None)


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
        f"{len(SEEDS)} patterns of heads for each row.",
        "",
        "| family | model class | " + " | ".join(("sdpa", "eager")) + " | generates the same |",
        "|---|---|---|---|---|",
    ]
    for name, family in sorted(FAMILIES.items()):
        lines.append(measure(name, family))
        print(lines[-1], flush=True)
    replace_table(PAGE, "families", lines)


def measure(name: str, family: Family) -> str:
    """Return the row of a family."""
    cells = [name, family.model]
    for implementation in ("sdpa", "eager"):
        if implementation not in family.implementations:
            cells.append("not offered")
            continue
        differences = []
        for seed in SEEDS:
            model, masked, probe = compact(family, seed, implementation=implementation, group_queries=bool(seed))
            differences.append(max_relative_difference(masked, forward_outputs(model, probe)))
        cells.append(f"{max(differences):.0e}" if max(differences) else "0")
    cells.append(generation(family) if family.generates else "-")
    return f"| {' | '.join(cells)} |"


def generation(family: Family) -> str:
    """Return in how many of the patterns generation gave the same tokens."""
    same = 0
    for seed in SEEDS:
        try:
            check_generation(family, seed, implementation=family.implementations[0], group_queries=bool(seed))
            same += 1
        except AssertionError:
            pass
    return f"{same} of {len(SEEDS)}"


if __name__ == "__main__":
    main()
