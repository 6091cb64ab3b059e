"""Runs that are killed at random moments and resumed, compared with an uninterrupted run.

    python -m benchmarks.faults
    python -m benchmarks.faults --points 5 --seed 7 --output /tmp/faults.jsonl

Each point is a whole run of a tiny model: gates, removal, recovery, export. It is killed at a random moment, mostly by
SIGKILL and sometimes by SIGTERM, and resumes with ``resume=auto``; every third one is killed once more on its way. Of
four moments, three are in or just after a random batch of training, and one is anywhere from the loading of the model
to the last picture. Compared are the weights of the compact model to the bit, its kept heads, all numbers of
``metrics.json`` but times, and the rows of the CSV file. Results are written as JSON lines, with a table at the end.
"""

import argparse
import json
import random
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import records
from benchmarks.faults.outcome import JUDGED, Outcome, progress
from benchmarks.faults.runs import Kill, Runs
from benchmarks.measuring import ROOT, machine

RESULTS = ROOT / "benchmarks" / "results" / "faults.jsonl"

# What a run is like: (title, settings). Checkpoints are close, so that kills fall before, in and after their writing.
VARIANTS: dict[str, list[str]] = {
    "budget": [],
    "importance, accumulating": ["objective=importance", "trainer.accumulate_grad_batches=2"],
    "top-k": ["objective=topk"],
    "Lagrangian": ["objective=lagrangian"],
    "dense": ["objective=none"],
}
SETTINGS = [
    "logger=csv",
    "trainer.max_steps=24",
    "callbacks.checkpoint.every_n_steps=2",
]
COLUMNS = {
    "variant": "run",
    "kills": "killed by",
    "same_weights": "same weights",
    "same_heads": "same heads",
    "same_metrics": "same metrics",
    "same_log": "same log",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Kill, resume and compare runs; return the number of those with other results."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--points", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for row in interrupt(Path(scratch), num_points=options.points, seed=options.seed):
            print(json.dumps(row), flush=True)
            rows.append(row)
    facts = machine()
    options.output.unlink(missing_ok=True)
    for row in rows:
        records.append(options.output, {**row, **facts})
    different = [row for row in rows if not all(row[name] for name in JUDGED)]
    print(records.markdown(rows, COLUMNS))
    print(f"{len(rows) - len(different)} of {len(rows)} interrupted runs ended as the uninterrupted one did.")
    return len(different)


def interrupt(scratch: Path, *, num_points: int, seed: int) -> Iterator[dict[str, Any]]:
    """Yield a row for each interrupted run.

    Args:
        scratch: An empty folder.
        num_points: How many runs to interrupt.
        seed: Of the moments.
    """
    from tests.support.tiny_run import make_inputs

    chance = random.Random(seed)
    runs = Runs([*make_inputs(scratch / "inputs"), *SETTINGS])
    wholes: dict[str, tuple[Outcome, int, float]] = {}
    for point in range(num_points):
        variant = list(VARIANTS)[point % len(VARIANTS)]
        settings = VARIANTS[variant]
        if variant not in wholes:
            whole = scratch / f"whole-{len(wholes)}"
            code, batches, seconds = runs.run(whole, *settings)
            assert code == 0, whole.with_suffix(".txt").read_text()
            wholes[variant] = (Outcome.of(whole), batches, seconds)
        outcome, batches, seconds = wholes[variant]
        folder = scratch / f"point-{point}"
        kills: list[str] = []
        kill: Kill | None = Kill.at_random(chance, batches=batches, seconds=seconds)
        while kill is not None:
            code, done, took = runs.run(folder, *settings, "resume=auto", kill=kill)
            if code not in (0, -kill.by, 128 + kill.by):
                raise RuntimeError(folder.with_suffix(".txt").read_text())
            if code:
                kills.append(f"{kill.by.name} {progress(folder)}")
            again = code != 0 and point % 3 == 0 and len(kills) < 2
            left = max(1, batches - done), max(1.0, seconds - took)
            kill = Kill.at_random(chance, batches=left[0], seconds=left[1]) if again else None
        if code:
            code, *_ = runs.run(folder, *settings, "resume=auto")
            if code:
                raise RuntimeError(folder.with_suffix(".txt").read_text())
        yield {
            "variant": variant,
            "point": point,
            "seed": seed,
            "kills": "; ".join(kills) or "ended before it was killed",
            **outcome.compare(Outcome.of(folder)),
        }


if __name__ == "__main__":
    sys.exit(main())
