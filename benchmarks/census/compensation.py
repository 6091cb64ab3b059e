"""Compensation in the model types of the census whose heads are exact: where it runs, and what it leaves alone.

    python -m benchmarks.census.compensation    # a quarter of an hour on one core

Each tiny model loses heads and neurons in random patterns, and is compensated on four times the batch of the census.
"""

import json
import warnings
from copy import deepcopy
from functools import partial
from typing import Any

import torch
import transformers
from tqdm import tqdm

import gating
from benchmarks import records
from benchmarks.census.case import EXACT, guarded
from benchmarks.census.models import build
from benchmarks.census.removal import UNITS, Row, Tiny, pattern, without
from benchmarks.census.settings import SIZES
from benchmarks.measuring import RESULTS
from gating.discovery.find import search_blocks
from gating.proof.probe import run_probe

OUTPUT = RESULTS / "census_compensation.jsonl"
_SPREAD, _SEED, _BATCHES = 0.1, 1, 4


def main() -> None:
    """Examine all types whose heads are exact, and store the results."""
    transformers.logging.set_verbosity_error()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    rows = []
    for row in tqdm([row for row in records.read(RESULTS / "census.jsonl") if row["outcome"] == "exact"], unit="type"):
        found = guarded(partial(examine, row))
        rows.append({"model_type": row["model_type"], **found, "transformers": transformers.__version__})
        if found["outcome"] != "runs":
            tqdm.write(json.dumps(rows[-1]))
    records.write(OUTPUT, rows)


def examine(row: Row) -> Row:
    """Compensate a tiny model of a row of the census."""
    for sizes in SIZES:
        try:
            model = build(row["model_type"], sizes, class_name=row["model_class"], spread=_SPREAD)
            batch, outputs = run_probe(model)
            break
        except Exception:  # the other sizes are for models that need them
            continue
    tiny, compact = Tiny(model, batch, outputs, row["by"] == "discovery"), deepcopy(model)
    for unit in UNITS if row["neurons_outcome"] == "exact" else UNITS[:1]:
        blocks, _ = search_blocks(compact, unit, **tiny.options(unit))
        compact = without(tiny._replace(model=compact), unit, blocks, pattern(blocks, _SEED))
    report = gating.compensate(compact, model, [batch] * _BATCHES)
    before, after = report.outputs
    reasons = sorted(set(report.left_alone.values()))
    outcome = "wrong" if not after <= before + EXACT else "runs" if report.blocks else "left alone"
    return {"outcome": outcome, "blocks": len(report.blocks), "outputs": report.outputs, "left_alone": reasons}


def counts(rows: list[dict[str, Any]]) -> str:
    """Return the sentence on the share of types where the compensation runs."""
    whole = sum(row["outcome"] == "runs" and not row["left_alone"] for row in rows)
    part = sum(row["outcome"] == "runs" for row in rows) - whole
    return (
        f"Of the {len(rows)} types, the compensation without training solves all blocks that have lost units in "
        f"{whole}, some of them in {part}, and none in {len(rows) - whole - part}."
    )


if __name__ == "__main__":
    main()
