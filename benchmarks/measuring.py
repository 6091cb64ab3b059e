"""Times of several callables measured side by side, and the facts about the machine that belong to them.

Absolute times say more about the machine than about the code. So everything compared is timed in one process, in turns,
and only ratios within a turn are reported.
"""

import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
MIN_ROUNDS = 3  # quartiles of fewer say nothing


def machine() -> dict[str, str | int | None]:
    """Return hardware, versions, date and commit, for a row of results."""
    has_gpu = torch.cuda.is_available()
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if has_gpu else None,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M"),
        "commit": _commit(),
    }


def interleave(
    callables: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    warm_up: int,
    budget_s: float,
    prepare: Callable[[], object] = lambda: None,
) -> dict[str, list[float]]:
    """Time callables in turns, so that whatever else the machine does slows all of them alike.

    Args:
        callables: Callables to time, by name.
        rounds: How often each is timed.
        warm_up: How often each is called before, untimed.
        budget_s: Seconds after which no new round begins, warming up included; three rounds are measured anyway.
        prepare: Called before each call, untimed, to renew its inputs.

    Returns:
        Seconds of each callable; the lists have equal lengths, an element for each round.
    """
    end = time.perf_counter() + budget_s
    names = list(callables)
    for name in names * warm_up:
        _seconds(callables[name], prepare)
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(max(rounds, MIN_ROUNDS)):
        if number >= MIN_ROUNDS and time.perf_counter() > end:
            break
        # Each is the first of a round as often as the last: what ran before leaves its traces in the caches.
        for name in names if number % 2 == 0 else reversed(names):
            times[name].append(_seconds(callables[name], prepare))
    return times


def run_python(*arguments: str, threads: int | None = None, **environment: str) -> str:
    """Run Python with arguments and return its standard output.

    Raises:
        RuntimeError: It failed.
    """
    settings = {**os.environ, "OMP_NUM_THREADS": str(threads or torch.get_num_threads()), **environment}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=settings, check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)} failed:\n{done.stderr[-2000:]}")
    return done.stdout


def ask(module: str, *arguments: str, **environment: str) -> Any:
    """Run a module in a fresh process, and return the JSON value on the last line that it prints."""
    return json.loads(run_python("-m", module, *arguments, **environment).splitlines()[-1])


def ratio(times: Mapping[str, list[float]], name: str, base: str) -> tuple[float, float, float]:
    """Return the median, the lower and the upper quartile of one callable's time over another's, round by round."""
    ratios = [one / other for one, other in zip(times[name], times[base], strict=True)]
    low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return median, low, high


def _seconds(function: Callable[[], object], prepare: Callable[[], object]) -> float:
    prepare()
    _wait()
    start = time.perf_counter()
    function()
    _wait()
    return time.perf_counter() - start


def _wait() -> None:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    """Return the checkout's commit, with a plus where files differ from it, results aside."""
    status = ["status", "--porcelain", "--untracked-files=no", ":(exclude)benchmarks/results"]
    try:
        commit, changed = (
            subprocess.run(
                ["git", "-C", str(ROOT), *command], capture_output=True, text=True, check=True
            ).stdout.strip()
            for command in (["rev-parse", "--short", "HEAD"], status)
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + "+" if changed else commit
