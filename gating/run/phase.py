"""What looks on while a phase of a run is trained."""

from collections.abc import Sequence
from typing import Any

from pytorch_lightning.callbacks import Callback

from gating.run.run import Run
from gating.training.callbacks.divergence import DivergenceStop
from gating.training.callbacks.gates import GateMonitor
from gating.training.callbacks.interruption import InterruptOnStop, to_seconds
from gating.training.callbacks.progress import PhaseProgressBar
from gating.training.checkpoints import RunCheckpoint

__all__ = ["callbacks_of_phase"]


def callbacks_of_phase(
    run: Run, phase: str, chosen: Sequence[Callback], *, apart: bool, shows_progress: bool, max_time: Any = None
) -> list[Callback]:
    """Return the callbacks of a phase in the order in which they are to be called.

    Args:
        run: The run.
        phase: Name of the phase.
        chosen: Those of the configuration, and those for this phase alone.
        apart: Whether the phase is no part of the run's history: the training of a teacher.
        shows_progress: Whether the terminal is to show it.
        max_time: How long this process may train, over all phases.
    """
    # First, since what others do at the start of a batch is not to be in a checkpoint of the moment before it.
    checkpoints = [callback for callback in chosen if isinstance(callback, RunCheckpoint)]
    others = [callback for callback in chosen if not isinstance(callback, RunCheckpoint)]
    bar = [PhaseProgressBar(phase)] if shows_progress else []
    always = [*checkpoints, *bar, DivergenceStop(run.checkpoints / phase)]
    seconds = to_seconds(max_time)
    deadline = None if seconds is None else run.began + seconds
    # Last, since it is about what the others do.
    end = InterruptOnStop(phase, deadline=deadline, max_time=max_time)
    return [*always, end] if apart else [*always, GateMonitor(run.history), *others, end]
