"""Shortcuts of whole runs in tests, in this process and in the warm Python."""

from typing import Any

from matplotlib.figure import Figure

from gating.pruning import latency
from gating.report import figures

__all__ = ["DRAWING", "TIMING"]


class EmptyFigure(Figure):
    """A figure that is saved without its axes; drawing them takes a fifth of a tiny run otherwise."""

    __module__ = Figure.__module__  # by which W&B knows the figures of matplotlib

    def savefig(self, *args: Any, **options: Any) -> None:
        self.clear()
        super().savefig(*args, **{**options, "dpi": 20})


# Arguments of setattr: runs draw nothing, and time their models with few passes.
DRAWING: list[tuple[Any, str, Any]] = [(figures, "Figure", EmptyFigure)]
TIMING: list[tuple[Any, str, Any]] = [(latency.CopyTimer, "repeats", 1), (latency, "_TIMING_SECONDS", 1e-9)]
