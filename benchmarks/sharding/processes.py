"""A function in several processes that train together: NCCL where each has a GPU, gloo elsewhere."""

import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed

from benchmarks.measuring import ROOT
from gating.tracking.verbosity import quiet_libraries

Call = tuple[str, Mapping[str, Any]]


def run_in_processes(calls: Sequence[Call], num_processes: int, *, environment: Mapping[str, str]) -> list[list[Any]]:
    """Return for each call the values of a function in fresh processes, which call one after the other.

    A call is a module of this package and a function, as in ``training:count_state``, and arguments; these and the
    values are JSON.

    Raises:
        RuntimeError: A process has failed; the others are ended.
    """
    with tempfile.TemporaryDirectory(prefix="head-gating-sharding-") as folder:
        settings = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads()), **environment}
        settings["WORLD_SIZE"] = str(num_processes)
        if not has_gpus(num_processes):
            settings["CUDA_VISIBLE_DEVICES"] = ""
        command = [sys.executable, "-m", "benchmarks.sharding.processes", folder, json.dumps(calls)]
        started = []
        for rank in range(num_processes):
            settings |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            with (Path(folder) / f"log-{rank}").open("w") as log:
                started.append(subprocess.Popen(command, cwd=ROOT, env=settings, stdout=log, stderr=log))
        try:
            _wait(started, Path(folder))
        finally:
            for process in started:
                process.kill()
                process.wait()
        by_rank = [json.loads((Path(folder) / f"values-{rank}").read_text()) for rank in range(num_processes)]
    return [list(values) for values in zip(*by_rank, strict=True)]


def _wait(started: list[subprocess.Popen[bytes]], folder: Path) -> None:
    """Wait for all processes; raise ``RuntimeError`` as soon as one has failed."""
    while True:
        codes = [process.poll() for process in started]
        for rank, code in enumerate(codes):
            if code:
                raise RuntimeError(f"Process {rank} ended with {code}:\n{(folder / f'log-{rank}').read_text()[-4000:]}")
        if None not in codes:
            return
        time.sleep(0.05)


def has_gpus(num_processes: int) -> bool:
    """Return whether there is a GPU for each of some processes."""
    return torch.cuda.is_available() and torch.cuda.device_count() >= num_processes


def device() -> torch.device:
    """Return the device of this process, which :func:`run_in_processes` has started."""
    return torch.device("cuda", int(os.environ["LOCAL_RANK"])) if torch.cuda.is_available() else torch.device("cpu")


def main(folder: Path, calls: Sequence[Call]) -> None:
    """Call functions in this process, one of several, and write their values to a folder."""
    quiet_libraries()
    rank = int(os.environ["RANK"])
    if torch.cuda.is_available():
        torch.cuda.set_device(device())
    backend = torch.distributed.get_default_backend_for_device(device())
    torch.distributed.init_process_group(
        backend, init_method=f"file://{folder / 'store'}", rank=rank, world_size=int(os.environ["WORLD_SIZE"])
    )
    values = []
    for name, arguments in calls:
        module, _, function = name.partition(":")
        values.append(getattr(importlib.import_module(f"benchmarks.sharding.{module}"), function)(**arguments))
    (folder / f"values-{rank}").write_text(json.dumps(values))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
