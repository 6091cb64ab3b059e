"""How a run ends: well, with a sentence about what was wrong, or stopped by a signal."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gating.distributed.collectives import is_lost_connection, is_rank_zero, rank
from gating.distributed.launch import stop_processes
from gating.distributed.watchdog import exit_on_lost_process, find_lost_process
from gating.errors import explain, is_input_error, unwrapped
from gating.run.folder.earlier_run import has_checkpoint
from gating.run.folder.state import is_finished, owned_by_this_process
from gating.run.folder.stored_settings import is_run
from gating.tracking.loggers import close_wandb
from gating.training.callbacks.divergence import DivergedError
from gating.training.signals import Stopped, stop_on_signals

__all__ = ["ending_well"]

_GO_ON = "The run can go on: python train.py resume="


@contextmanager
def ending_well(folder: Callable[[], Path]) -> Iterator[None]:
    """Run a ``with`` block; close what is open whatever happens, and say how to go on where that is possible.

    What the user can mend ends in one sentence and exit code 1, a signal in 128 and its number. Faults of the program
    keep their traceback.

    Args:
        folder: Tells the run's folder, which may not be there.
    """
    failed = True
    try:
        with stop_on_signals(), exit_on_lost_process(lambda lost: _say_lost(lost, folder())):
            yield
        failed = False
    except Stopped as stopped:
        _say(f"{stopped}.")
        _say_how_to_go_on(folder())
        sys.exit(stopped.exit_code)
    except Exception as error:
        cause = unwrapped(error)
        if is_lost_connection(cause):
            _say_lost(find_lost_process(patience_s=5.0), folder())
            sys.exit(1)
        if not is_input_error(cause):
            _say_how_to_go_on(folder())
            raise
        if isinstance(cause, DivergedError):
            _say(f"error: {cause}")
        else:
            print(f"error: {explain(cause)}", file=sys.stderr)
            _say_how_to_go_on(folder())
        raise SystemExit(1) from cause
    finally:
        if failed:
            stop_processes()
        wandb_folder = None
        try:
            with stop_on_signals():
                wandb_folder = close_wandb(failed=failed)
        except Stopped as stopped:
            # All is written; what is not uploaded yet, `wandb sync` uploads.
            _say(f"{stopped}.")
            sys.exit(stopped.exit_code)
        if wandb_folder is not None:
            print(f"W&B run  {wandb_folder}\n  look   wandb leet {wandb_folder}\n  upload wandb sync {wandb_folder}")


def _say(sentence: str) -> None:
    """Say once what all processes know."""
    if is_rank_zero():
        # The terminal may be gone.
        with suppress(OSError):
            print(sentence, file=sys.stderr, flush=True)


def _say_lost(lost: str | None, folder: Path) -> None:
    """Say which process has ended; another one says it where that was the first."""
    if is_rank_zero() or (rank() == 1 and lost is not None and lost.startswith("rank 0 ")):
        which = f": {lost}" if lost else ""
        go_on = f"\n{_GO_ON}{folder}" if _can_go_on(folder) else ""
        with suppress(OSError):
            print(
                f"error: Another process of this run has ended{which}. What it said about it, if anything, is above."
                + go_on,
                file=sys.stderr,
                flush=True,
            )


def _say_how_to_go_on(folder: Path) -> None:
    if owned_by_this_process(folder) and _can_go_on(folder):
        _say(f"{_GO_ON}{folder}")


def _can_go_on(folder: Path) -> bool:
    """Say whether a run is not finished, and has something to go on from."""
    return is_run(folder) and not is_finished(folder) and has_checkpoint(folder)
