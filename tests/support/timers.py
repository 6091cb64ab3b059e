"""Timers of compact copies: without a limit of time, and with times that are given."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gating.gates import HeadGates
from gating.pruning.latency import CopyTimer, LatencyComparison


def timer_of(
    model: nn.Module, batch: Mapping[str, Tensor], *, seconds: float = 1e6, repeats: int = 3, precision: float = 1e9
) -> CopyTimer:
    """Return a timer of copies that has enough time, and needs no precision."""
    timer = CopyTimer(model, batch, seconds=seconds)
    timer.repeats, timer.precision = repeats, precision
    return timer


def compare(before: nn.Module, after: nn.Module, batch: Mapping[str, Tensor], **options: Any) -> LatencyComparison:
    """Time two models in turns; the options are those of :func:`timer_of`."""
    return timer_of(before, batch, **options).time(after)


class KnownTimes(CopyTimer):
    """A timer that computes the speedup of a copy from the mask of its gates, and makes no copy."""

    def __init__(self, speedup_of: Callable[[Tensor], float]) -> None:
        super().__init__(nn.Identity(), {"x": torch.ones(1, 1)}, seconds=1e6)
        self._speedup_of = speedup_of

    def time_kept(self, gates: HeadGates, kept: Tensor, **_: Any) -> LatencyComparison:
        speedup = float(self._speedup_of(kept))
        self.timed.append(LatencyComparison(1.0, 1 / speedup, repeats=3, batch="1 x 1", error=0.0))
        return self.timed[-1]


class Slow(nn.Module):
    """A model that takes a given time on the fake clock and records its mode in each pass."""

    def __init__(self, clock: list[float], seconds: float) -> None:
        """Args: ``clock`` has the present time, and ``seconds`` is the time of a pass of any batch."""
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.clock, self.seconds = clock, seconds
        self.modes: list[tuple[bool, bool]] = []

    def forward(self, x: Tensor) -> Any:
        """Advance the clock."""
        self.clock[0] += self.seconds
        self.modes.append((self.training, torch.is_grad_enabled()))
