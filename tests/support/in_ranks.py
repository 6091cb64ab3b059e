"""A function in several processes that train together, through gloo: each is a fork of the warm Python process."""

import importlib
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.tiny_run import ROOT
from tests.support.warm_python import warm_python

__all__ = ["run_in_ranks"]

_CRASHED = 128 + signal.SIGSEGV


def run_in_ranks(function: Callable[..., Any], *arguments: Any, num_ranks: int = 2, timeout: float = 200) -> list[Any]:
    """Return the values of a function at module level in each rank; arguments and values are pickled."""
    with tempfile.TemporaryDirectory(prefix="head-gating-ranks-") as name:
        folder = Path(name)
        job = (function.__module__, function.__qualname__, arguments)
        (folder / "job").write_bytes(pickle.dumps(job))
        # A thread of gloo was seen to crash in malloc in CI and not in 400 repeats; a crash of our own comes again.
        for _ in range(2):
            process = subprocess.run(
                [*warm_python(), str(Path(__file__)), name, str(num_ranks)],
                env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
                capture_output=True,
                text=True,
                timeout=timeout,
                check=False,
            )
            if process.returncode != _CRASHED:
                break
            (folder / "store").unlink(missing_ok=True)
        assert process.returncode == 0, process.stderr[-8000:]
        return [pickle.loads((folder / f"value-{rank}").read_bytes()) for rank in range(num_ranks)]


def _run_one(folder: Path, rank: int, num_ranks: int) -> None:
    import torch
    import torch.distributed

    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(num_ranks)}
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=num_ranks
    )
    module, name, arguments = pickle.loads((folder / "job").read_bytes())
    value = getattr(importlib.import_module(module), name)(*arguments)
    (folder / f"value-{rank}").write_bytes(pickle.dumps(value))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def main(folder: Path, num_ranks: int) -> int:
    """Run the job of a folder in as many forks; after the failure of one, the others are killed.

    Returns:
        0, 1 after a failure, or as a shell has it where a rank was killed by a signal.
    """
    children = {}
    for rank in range(num_ranks):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                _run_one(folder, rank, num_ranks)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        children[pid] = rank
    failed = 0
    while children:
        pid, status = os.wait()
        del children[pid]
        number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        if status and not failed:
            failed = 128 + number if number else 1
            time.sleep(1)  # One that crashes closes its connections before it has ended.
            for other in children:
                os.kill(other, signal.SIGKILL)
        failed = _CRASHED if number in (signal.SIGSEGV, signal.SIGABRT) else failed
    return failed


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
