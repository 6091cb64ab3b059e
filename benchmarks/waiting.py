"""Training steps with two threads, by how OpenMP threads wait, on a quiet machine and beside another program.

    python -m benchmarks.waiting

Each way is a process of its own, since torch reads the variables when it is imported. The ways take turns. The other
program is a loop in Python that keeps one core busy; the step is that of a MiniLM with random weights, 16 x 44 tokens.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from benchmarks import records
from benchmarks.measuring import ROOT, machine

RESULTS = ROOT / "benchmarks" / "results" / "waiting.jsonl"
_VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS")
WAYS: Mapping[str, Mapping[str, str]] = {
    "GCC's default": {"OMP_NUM_THREADS": "2"},
    "GOMP_SPINCOUNT=100000": {"OMP_NUM_THREADS": "2", "GOMP_SPINCOUNT": "100000"},
    "GOMP_SPINCOUNT=10000": {"OMP_NUM_THREADS": "2", "GOMP_SPINCOUNT": "10000"},
    "GOMP_SPINCOUNT=1000": {"OMP_NUM_THREADS": "2", "GOMP_SPINCOUNT": "1000"},
    "OMP_WAIT_POLICY=PASSIVE": {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
COLUMNS = {"way": "", "quiet": "quiet machine, s", "busy": "beside another program, s"}
Row = dict[str, Any]


def main() -> None:
    """Measure each way in turns, append the results to a file and print them."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.waiting", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3, help="processes of each way (3)")
    parser.add_argument("--steps", type=int, default=8, help="timed steps of a process (8)")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(seconds_of_steps(options.steps)))
        return
    times: dict[str, dict[str, list[float]]] = {way: {"quiet": [], "busy": []} for way in WAYS}
    for _ in range(options.rounds):
        for way, variables in WAYS.items():
            times[way]["quiet"] += _measured(variables, steps=options.steps)
            with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
                times[way]["busy"] += _measured(variables, steps=options.steps)
                other.kill()
    facts = {**machine(), "threads": 2}
    rows = [
        {"way": way, **{name: _quartiles(found) for name, found in row.items()}, **facts} for way, row in times.items()
    ]
    for row in rows:
        records.append(RESULTS, row)
    print(records.markdown(rows, COLUMNS))


def seconds_of_steps(steps: int) -> list[float]:
    """Return the seconds of training steps in this process."""
    import time

    import torch

    from benchmarks.speed.shapes import bert, text_batch
    from benchmarks.speed.training import plain_step

    model = bert("minilm", device=torch.device("cpu")).train()
    step = plain_step(model, text_batch(model, 16, 44, labels=True), "fp32")
    step()
    seconds = []
    for _ in range(steps):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return seconds


def _measured(variables: Mapping[str, str], *, steps: int) -> list[float]:
    environment = {name: value for name, value in os.environ.items() if name not in _VARIABLES}
    command = [sys.executable, "-m", "benchmarks.waiting", "--measure", "--steps", str(steps)]
    ended = subprocess.run(command, env={**environment, **variables}, capture_output=True, text=True, check=True)
    seconds: list[float] = json.loads(ended.stdout)
    return seconds


def _quartiles(seconds: list[float]) -> tuple[float, float, float]:
    low, median, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return median, low, high


if __name__ == "__main__":
    main()
