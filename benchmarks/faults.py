"""Runs that are killed at random moments and go on, compared with the run that nobody interrupted.

    python -m benchmarks.faults
    python -m benchmarks.faults --points 5 --seed 7 --output /tmp/faults.jsonl

Each point is a whole run of a tiny model: gates, removal, recovery, export. It is killed at a random moment, mostly by
SIGKILL and sometimes by SIGTERM, and goes on with ``resume=auto``; every third one is killed once more on its way.
Compared are the weights of the compact model to the bit, its kept heads, all numbers of ``metrics.json`` but times, and
the rows of the CSV file. Results are written as JSON lines, with a table at the end.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from benchmarks import records
from benchmarks.measuring import ROOT, machine

sys.path.append(str(ROOT / "tests"))
RESULTS = ROOT / "benchmarks" / "results" / "faults.jsonl"

# What a run is like: (title, settings). Checkpoints are close, so that kills fall before, in and after their writing.
VARIANTS: dict[str, list[str]] = {
    "budget": [],
    "importance, accumulating": ["objective=importance", "trainer.accumulate_grad_batches=2"],
    "top-k": ["objective=topk"],
    "Lagrangian": ["objective=lagrangian"],
    "dense": ["objective=none"],
}
COLUMNS = {
    "variant": "run",
    "kills": "killed by",
    "stopped_in": "in",
    "same_weights": "same weights",
    "same_heads": "same heads",
    "same_metrics": "same metrics",
    "same_log": "same log",
}
JUDGED = ("same_weights", "same_heads", "same_metrics", "same_log")
_PATIENCE = 600  # Seconds after which something hangs.


@dataclass(frozen=True)
class Outcome:
    """What is left of a run."""

    weights: dict[str, torch.Tensor]
    heads: dict[str, Any]
    metrics: dict[str, Any]
    log: str

    @classmethod
    def of(cls, folder: Path) -> "Outcome":
        """Read the folder of a finished run."""
        numbers = json.loads((folder / "metrics.json").read_text())
        measured = ("seconds/", "latency_ms", "speedup")
        return cls(
            weights=load_file(folder / "compact" / "model.safetensors"),
            heads=json.loads((folder / "compact" / "config.json").read_text()).get("head_gating", {}).get("blocks", {}),
            metrics={name: value for name, value in numbers.items() if not name.startswith(measured)},
            log=(folder / "csv" / "metrics.csv").read_text(),
        )

    def compare(self, other: "Outcome") -> dict[str, bool]:
        """Say what is the same, to the bit."""
        same = self.weights.keys() == other.weights.keys() and all(
            torch.equal(self.weights[name], other.weights[name]) for name in self.weights
        )
        return dict(
            zip(
                JUDGED,
                (same, self.heads == other.heads, self.metrics == other.metrics, self.log == other.log),
                strict=True,
            )
        )


class Runs:
    """Processes that run ``train.py`` and can be killed, without importing everything again for each."""

    def __init__(self, inputs: Sequence[str]) -> None:
        """Args: ``inputs`` are the settings that all runs have."""
        self._inputs = list(inputs)
        self._context: ForkServerContext = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["train", "tiny_run"])

    def run(
        self, folder: Path, *settings: str, kill_after: float | None = None, by: int = signal.SIGKILL
    ) -> tuple[int, float]:
        """Run once.

        Args:
            folder: The run's folder.
            settings: Further settings.
            kill_after: Seconds after the beginning to send a signal; None to let it end.
            by: The signal.

        Returns:
            The exit code, negative for the number of a signal, and the seconds it took.
        """
        overrides = [*self._inputs, f"output_dir={folder}", *settings]
        reader, writer = self._context.Pipe(duplex=False)
        process = self._context.Process(target=_run, args=(overrides, folder.with_suffix(".txt"), writer))
        process.start()
        reader.recv()  # It begins now.
        start = time.perf_counter()
        if kill_after is not None:
            process.join(kill_after)
            if process.pid is not None and process.is_alive():
                os.kill(process.pid, by)
        process.join(_PATIENCE)
        if process.is_alive():
            process.kill()
            raise TimeoutError(f"The run in {folder} is still under way after {_PATIENCE} s.")
        assert process.exitcode is not None
        return process.exitcode, time.perf_counter() - start


def main(arguments: Sequence[str] | None = None) -> int:
    """Kill, go on, compare; return how many runs came to another end."""
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


def interrupt(scratch: Path, *, num_points: int, seed: int) -> Any:
    """Yield a row for each interrupted run.

    Args:
        scratch: An empty folder.
        num_points: How many runs to interrupt.
        seed: Of the moments.
    """
    from tiny_run import make_inputs

    chance = random.Random(seed)
    runs = Runs([*make_inputs(scratch / "inputs"), "logger=csv", "callbacks.checkpoint.every_n_steps=1"])
    wholes: dict[str, tuple[Outcome, float]] = {}
    for point in range(num_points):
        variant = list(VARIANTS)[point % len(VARIANTS)]
        settings = VARIANTS[variant]
        if variant not in wholes:
            whole = scratch / f"whole-{len(wholes)}"
            code, seconds = runs.run(whole, *settings)
            assert code == 0, whole.with_suffix(".txt").read_text()
            wholes[variant] = (Outcome.of(whole), seconds)
        outcome, seconds = wholes[variant]
        folder = scratch / f"point-{point}"
        kills, places = [], []
        code = 1
        while code != 0:
            wanted = len(kills) < (1 if point % 3 else 2)
            by = signal.SIGTERM if chance.random() < 0.25 else signal.SIGKILL
            after = chance.random() * seconds if wanted else None
            code, _ = runs.run(folder, *settings, "resume=auto", kill_after=after, by=by)
            if code in (-by, 128 + by):
                kills.append(by.name)
                places.append(_where(folder))
            elif code != 0:
                raise RuntimeError(folder.with_suffix(".txt").read_text())
        yield {
            "variant": variant,
            "point": point,
            "seed": seed,
            "kills": ", ".join(kills) or "none in time",
            "stopped_in": ", ".join(places) or "-",
            **outcome.compare(Outcome.of(folder)),
        }


def _where(folder: Path) -> str:
    """Say how far a run has come, by what it has left."""
    if (folder / "compact").exists():
        return "report"
    for phase in ("recovery", "removed", "dense", "search"):
        steps = [int(path.stem.partition("-")[2]) for path in (folder / "checkpoints" / phase).glob("step-*.ckpt")]
        if steps:
            return f"{phase} after step {max(steps)}"
    return "search, no checkpoint" if (folder / "config.yaml").exists() else "preparation"


def _run(overrides: list[str], log: Path, writer: Any) -> None:
    """Do what ``python train.py`` does, in a process that has everything imported."""
    from tiny_run import compose_settings

    import train

    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    torch.set_num_threads(1)
    settings = compose_settings(overrides)
    with log.open("w") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        writer.send(True)
        train.guarded_run(settings)


if __name__ == "__main__":
    sys.exit(main())
