"""Watching over the processes of a run: a lost one ends the others with a message, not with their own kill signal.

Lightning's observer kills the first process without a message if another one dies, and no process notices that the
first one has died while it waits for it.
"""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from lightning_fabric.strategies.ddp import DDPStrategy
from lightning_fabric.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
from typing_extensions import override

__all__ = ["WatchedDDP", "find_lost_process", "exit_on_lost_process", "stop_children"]

# How often to look, and how long a process may take to fail by itself: it cannot where it waits for the lost one.
_INTERVAL_S, _GRACE_S = 0.5, 20.0
# The id of the first process, for those that it starts.
_FIRST = "HEAD_GATING_FIRST_PROCESS"

# The processes that this one has started, by rank.
_children: dict[int, subprocess.Popen[bytes]] = {}
_heed: Callable[[str], None] | None = None


class WatchedDDP(DDPStrategy):
    """Lightning's strategy, but for the observer of its processes."""

    @override
    def _configure_launcher(self) -> None:
        super()._configure_launcher()
        assert self.cluster_environment is not None
        if not self.cluster_environment.creates_processes_externally:
            self._launcher = _WatchedLauncher(self.cluster_environment, self.num_processes, self.num_nodes)
        elif _is_started_by_first():
            _start_watching()


class _WatchedLauncher(_SubprocessScriptLauncher):
    @override
    def _call_children_scripts(self) -> None:
        os.environ[_FIRST] = str(os.getpid())
        super()._call_children_scripts()
        first = int(os.environ["NODE_RANK"]) * self.num_processes
        _children.update({first + local_rank: process for local_rank, process in enumerate(self.procs, start=1)})
        # Lightning's observer, which is started next, has nothing to look at then.
        self.procs = []
        _start_watching()


def find_lost_process(*, patience_s: float = 0.0) -> str | None:
    """Describe a process of the run that has ended and should not have.

    Args:
        patience_s: How long to wait for its exit code, which comes later than the error of its connections.

    Returns:
        Its rank and how it ended; None if there is none, or other programs have started the processes.
    """
    end = time.monotonic() + patience_s
    while True:
        for rank, process in _children.items():
            if process.poll():
                return f"rank {rank} {_describe(process.returncode)}"
        if os.environ.get(_FIRST, "") not in ("", str(os.getpid()), str(os.getppid())):
            return "rank 0 was killed"
        if time.monotonic() >= end or not (_children or _is_started_by_first()):
            return None
        time.sleep(_INTERVAL_S / 5)


@contextmanager
def exit_on_lost_process(say: Callable[[str], None]) -> Iterator[None]:
    """End this process if another one is lost in a ``with`` block and this one only waits for it.

    Args:
        say: What to do before, with a description of the lost process.
    """
    global _heed
    _heed = say
    try:
        yield
    finally:
        _heed = None


def stop_children() -> bool:
    """Kill the processes that this one has started, and say whether there were any; others may be started then."""
    if not _children:
        return False
    for process in _children.values():
        process.kill()  # Nothing less ends one that waits for another.
    _children.clear()
    # By which Lightning tells the processes that it has started.
    for name in ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)
    return True


def _start_watching() -> None:
    threading.Thread(target=_watch, daemon=True, name="process-watch").start()


def _watch() -> None:
    children = list(_children.values())
    while list(_children.values()) == children:
        if find_lost_process() is not None:
            time.sleep(_GRACE_S)
            lost = find_lost_process()
            if lost is not None and _heed is not None:
                _heed(lost)
                _kill(children)
                os._exit(1)  # The main thread waits for an answer that never comes.
        time.sleep(_INTERVAL_S)


def _kill(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.kill()


def _is_started_by_first() -> bool:
    return os.environ.get(_FIRST) == str(os.getppid())


def _describe(exit_code: int) -> str:
    if exit_code < 0:
        return f"was killed by {signal.Signals(-exit_code).name}"
    return f"has ended with exit code {exit_code}"
