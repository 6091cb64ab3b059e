"""Functions in several processes that train together: NCCL where each has a GPU, gloo elsewhere."""

import importlib
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed

from benchmarks.measuring import run_python
from gating.tracking.verbosity import quiet_libraries

# A module of this package and a function, as in ``training:count_state``, and arguments.
Call = tuple[str, Mapping[str, Any]]


def run_in_processes(calls: Sequence[Call], num_processes: int, **environment: str) -> list[list[Any]]:
    """Return for each call the values of a function in fresh processes, which call one after the other.

    Raises:
        RuntimeError: A process has failed.
    """
    if not has_gpus(num_processes):
        environment["CUDA_VISIBLE_DEVICES"] = ""
    with tempfile.TemporaryDirectory(prefix="head-gating-sharding-") as folder:
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_processes}"]
        run_python(*launch, "-m", "benchmarks.sharding.processes", folder, json.dumps(calls), **environment)
        by_rank = [json.loads((Path(folder) / f"values-{rank}").read_text()) for rank in range(num_processes)]
    return [list(values) for values in zip(*by_rank, strict=True)]


def has_gpus(num_processes: int) -> bool:
    """Return whether there is a GPU for each of some processes."""
    return torch.cuda.is_available() and torch.cuda.device_count() >= num_processes


def device() -> torch.device:
    """Return the device of this process, which :func:`run_in_processes` has started."""
    return torch.device("cuda", int(os.environ["LOCAL_RANK"])) if torch.cuda.is_available() else torch.device("cpu")


def main(folder: Path, calls: Sequence[Call]) -> None:
    """Call functions in this process, one of several, and write their values to a folder."""
    quiet_libraries()
    if torch.cuda.is_available():
        torch.cuda.set_device(device())
    torch.distributed.init_process_group(torch.distributed.get_default_backend_for_device(device()))
    values = []
    for name, arguments in calls:
        module, _, function = name.partition(":")
        values.append(getattr(importlib.import_module(f"benchmarks.sharding.{module}"), function)(**arguments))
    (folder / f"values-{os.environ['RANK']}").write_text(json.dumps(values))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
