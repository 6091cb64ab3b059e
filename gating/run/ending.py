"""The end of a run: after success, an error, or a signal."""

import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from gating.distributed.collectives import is_lost_connection, is_rank_zero, rank
from gating.distributed.launch import stop_processes
from gating.distributed.watchdog import LostProcess, exit_on_lost_process, find_lost_process
from gating.errors import explain, is_input_error
from gating.run.folder import RunFolder
from gating.tracking.loggers import close_wandb
from gating.training.callbacks import DivergedError
from gating.training.signals import Stopped, stop_on_signals

# Seconds in which rank 0 ends the other processes after an error.
_PATIENCE_S = 2.0


@contextmanager
def handling_errors(folder: RunFolder) -> Iterator[None]:
    """Run a ``with`` block; close W&B and other processes at its end, and print how to resume after an error.

    A user's error ends in one sentence and exit code 1, a signal in 128 plus its number. Faults keep their traceback.
    """
    failed = True
    try:
        with stop_on_signals(), exit_on_lost_process(partial(_print_lost, folder=folder)):
            yield
        failed = False
    except Stopped as stopped:
        _print_once(f"{stopped}.", folder.how_to_resume())
        sys.exit(stopped.exit_code)
    except Exception as error:
        if not _print_error(error, folder):
            raise
        raise SystemExit(1) from error
    finally:
        if failed:
            stop_processes()
        _finish_wandb(failed=failed)


def _print_error(error: Exception, folder: RunFolder) -> bool:
    """Print a user's error as one sentence; return False for a fault, which keeps its traceback."""
    if is_lost_connection(error):
        _print_lost(find_lost_process(patience_s=5.0), folder=folder)
    elif isinstance(error, DivergedError):
        # All ranks raise it, and a run resumed from the last checkpoint would diverge again.
        _print_once(f"error: {error}")
    elif is_input_error(error):
        if not is_rank_zero():
            # Rank 0 may have the same error, and ends this process then.
            time.sleep(_PATIENCE_S)
        print(f"error: {explain(error)}", file=sys.stderr)
        _print_once(folder.how_to_resume())
    else:
        _print_once(folder.how_to_resume())
        return False
    return True


def _finish_wandb(*, failed: bool) -> None:
    parts: list[Path] = []
    try:
        with stop_on_signals():
            parts = close_wandb(failed=failed)
    except Stopped as stopped:
        # Everything is written; `wandb sync` uploads the rest.
        _print_once(f"{stopped}.")
        sys.exit(stopped.exit_code)
    if parts:
        print(f"W&B run  {parts[-1]}\n  look   {shlex.join(['wandb', 'leet', str(parts[-1])])}")
    if waiting := [str(part) for part in parts if part.name.startswith("offline-")]:
        print(f"  upload {shlex.join(['wandb', 'sync', *waiting])}")


def _print_once(*sentences: str, on: int = 0) -> None:
    """Print sentences on one rank; empty ones are none."""
    for sentence in filter(None, sentences if rank() == on else ()):
        # The terminal may be gone.
        with suppress(OSError):
            print(sentence, file=sys.stderr, flush=True)


def _print_lost(lost: LostProcess | None, *, folder: RunFolder) -> None:
    """Print which process has ended: on rank 0, or on rank 1 if it was rank 0."""
    which = f": {lost}" if lost else ""
    _print_once(
        f"error: Another process of this run has ended{which}. Its own error message, if any, is above.",
        folder.how_to_resume(),
        on=1 if lost is not None and lost.rank == 0 else 0,
    )
