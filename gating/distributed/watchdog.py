"""Watchdog over the processes of a run: after the loss of one, the others end with a message.

Lightning's observer kills rank 0 without a message when another rank dies, and a rank that waits in a collective does
not notice that rank 0 has died.
"""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from lightning_fabric.strategies.ddp import DDPStrategy
from lightning_fabric.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
from typing_extensions import override

# Seconds between checks, and for a process to fail by itself before it is ended: in a collective it may hang.
_INTERVAL_S, _GRACE_S = 0.5, 20.0
# Environment variable with the process id of rank 0, for the processes that it starts.
_RANK_ZERO_PID = "HEAD_GATING_FIRST_PROCESS"

# The processes that this one started, by rank.
_children: dict[int, subprocess.Popen[bytes]] = {}
_on_lost: "Callable[[LostProcess], None] | None" = None


class LostProcess(NamedTuple):
    """A process of the run that has died, and how it ended, such as ``was killed by SIGKILL``."""

    rank: int
    ending: str

    def __str__(self) -> str:
        return f"rank {self.rank} {self.ending}"


class WatchedDDP(DDPStrategy):
    """Lightning's DDP strategy, with this watchdog instead of its observer."""

    @override
    def _configure_launcher(self) -> None:
        super()._configure_launcher()
        assert self.cluster_environment is not None
        if not self.cluster_environment.creates_processes_externally:
            self._launcher = _WatchedLauncher(self.cluster_environment, self.num_processes, self.num_nodes)
        elif _is_started_by_rank_zero():
            _start_watchdog()


class _WatchedLauncher(_SubprocessScriptLauncher):
    @override
    def _call_children_scripts(self) -> None:
        if os.name == "posix":  # On Windows, the parent of a process may be the launcher of a virtual environment.
            os.environ[_RANK_ZERO_PID] = str(os.getpid())
        super()._call_children_scripts()
        first = int(os.environ["NODE_RANK"]) * self.num_processes
        _children.update({first + local_rank: process for local_rank, process in enumerate(self.procs, start=1)})
        # Lightning's observer, which starts next, has no processes to observe then.
        self.procs = []
        _start_watchdog()


def find_lost_process(*, patience_s: float = 0.0) -> LostProcess | None:
    """Return a dead process of the run, or None; its exit code may follow the connection error within the patience."""
    end = time.monotonic() + patience_s
    while True:
        for rank, process in _children.items():
            if process.poll():
                return LostProcess(rank, _describe(process.returncode))
        if os.environ.get(_RANK_ZERO_PID, "") not in ("", str(os.getpid()), str(os.getppid())):
            return LostProcess(0, "was killed")
        if time.monotonic() >= end or not (_children or _is_started_by_rank_zero()):
            return None
        time.sleep(_INTERVAL_S / 5)


@contextmanager
def exit_on_lost_process(on_lost: Callable[[LostProcess], None]) -> Iterator[None]:
    """Call a function and exit with code 1 if another process dies during a ``with`` block and this one hangs."""
    global _on_lost
    _on_lost = on_lost
    try:
        yield
    finally:
        _on_lost = None


def stop_children() -> bool:
    """Kill the processes that this one started, so that others may be started; return whether there were any."""
    if not _children:
        return False
    for process in _children.values():
        process.kill()  # SIGTERM does not end a process that waits in a collective.
    _children.clear()
    # Lightning recognizes started processes by these variables.
    for name in ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)
    return True


def _start_watchdog() -> None:
    threading.Thread(target=_watch, daemon=True, name="watchdog").start()


def _watch() -> None:
    children = list(_children.values())
    while list(_children.values()) == children:
        if find_lost_process() is not None:
            time.sleep(_GRACE_S)
            lost = find_lost_process()
            if lost is not None and _on_lost is not None:
                _on_lost(lost)
                for process in children:
                    process.kill()
                os._exit(1)  # The main thread hangs in a collective.
        time.sleep(_INTERVAL_S)


def _is_started_by_rank_zero() -> bool:
    return os.environ.get(_RANK_ZERO_PID) == str(os.getppid())


def _describe(exit_code: int) -> str:
    if exit_code < 0:
        return f"was killed by {signal.Signals(-exit_code).name}"
    return f"has ended with exit code {exit_code}"
