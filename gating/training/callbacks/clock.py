"""Seconds of a run in its checkpoints, so that a resumed run reports the sum over all processes."""

from typing import Any

from pytorch_lightning.callbacks import Callback

from gating.report.summary import Summary

__all__ = ["RunClock"]


class RunClock(Callback):
    """Callback that saves the seconds of a run's stages in each checkpoint, with those of the current phase so far."""

    def __init__(self, summary: Summary) -> None:
        """Args: ``summary`` has the seconds."""
        self._summary = summary

    def state_dict(self) -> dict[str, Any]:
        """Return the seconds so far for a checkpoint."""
        return {"seconds": self._summary.all_seconds()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the seconds of earlier processes from a checkpoint."""
        self._summary.earlier_seconds = dict(state_dict["seconds"])
