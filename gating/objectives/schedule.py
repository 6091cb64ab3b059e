"""Schedule of the number of open units, or of their share of the cost, during the search."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, distributed

from gating.errors import InputError
from gating.gates.hard_concrete import FullPrecision, are_numbers

# Share of the search before which no descent begins by itself.
_EARLIEST = 0.13
# Numbers of batches whose losses are compared: the first of the search, and the last so far.
_NUM_FIRST, _NUM_LAST = 10, 20


@dataclass(frozen=True)
class BudgetSchedule:
    """A descent from all heads to the budget.

    Attributes:
        start: Share of the search before the descent begins. None for 0.13, or for a later one in objectives that wait
            until the training loss has fallen (:class:`DescentStart`).
        end: Share of the search after which the number of heads stays at the budget.
        shape: ``linear``, or ``cubic``: fast at first, slow at the end (Zhu and Gupta 2017, arXiv 1710.01878).
    """

    start: float | None = None
    end: float = 0.67
    shape: Literal["linear", "cubic"] = "linear"

    def __post_init__(self) -> None:
        if not (are_numbers(self.earliest, self.end) and 0 <= self.earliest <= self.end <= 1):
            raise InputError(
                f"The schedule must have 0 <= start <= end <= 1, got start={self.earliest!r} and end={self.end!r}."
            )
        if self.shape not in ("linear", "cubic"):
            raise InputError(f"The schedule's shape is linear or cubic, got {self.shape!r}.")

    @property
    def earliest(self) -> float:
        """The share of the search before which the descent does not begin."""
        return _EARLIEST if self.start is None else self.start

    @property
    def latest(self) -> float:
        """The share of the search at which the descent begins at the latest; half of the time to the end is left."""
        return (self.earliest + self.end) / 2 if self.start is None else self.start

    def target(self, progress: float, *, total: float, budget: float, start: float | None = None) -> float:
        """Return the number of heads that may be open.

        Args:
            progress: Share of the search that is done, 0 to 1.
            total: Number of open heads at the start.
            budget: Number of open heads at the end.
            start: Share of the search at which the descent began; by default the earliest.

        Example:
            >>> BudgetSchedule(start=0.0, end=1.0).target(0.25, total=72, budget=18)
            58.5
        """
        start = self.earliest if start is None else start
        if progress >= self.end:
            return budget
        if progress <= start:
            return total
        left = 1 - (progress - start) / (self.end - start)
        return budget + (total - budget) * (left**3 if self.shape == "cubic" else left)


class DescentStart(FullPrecision):
    """The start of a descent: when the training loss has fallen, so that closing heads has a signal to follow.

    The loss has fallen if the mean of the first 10 batches exceeds that of the last 20 by more than the standard
    deviation of the latter, whatever the scale of the loss. Heads that close while a model is still guessing are chosen
    by noise: on pairs of sentences a model may need a fourth of a short search until it does better.
    """

    losses: Tensor

    def __init__(self) -> None:
        """Begin without a loss."""
        super().__init__()
        self.register_buffer("losses", torch.zeros(_NUM_FIRST + _NUM_LAST))
        self.num_seen = 0
        self.begun_at: float | None = None

    def observe(self, loss: Tensor) -> None:
        """Add the loss of a training batch, a scalar."""
        slot, late = self.num_seen, self.num_seen - _NUM_FIRST
        self.losses[slot if late < 0 else _NUM_FIRST + late % _NUM_LAST] = loss.detach()
        self.num_seen += 1

    def update(self, schedule: BudgetSchedule, progress: float) -> float | None:
        """Return the share of the search at which the descent began, which may be now; None before.

        Without any loss, it begins at the earliest share. Processes with the same progress get the same result.
        """
        if self.begun_at is None and progress >= schedule.earliest:
            if not self.num_seen:
                self.begun_at = schedule.earliest
            elif progress >= schedule.latest or self._has_fallen():
                self.begun_at = progress
        return self.begun_at

    def followed_loss(self, schedule: BudgetSchedule) -> bool:
        """Return whether the descent began because the loss had fallen."""
        return self.num_seen > 0 and self.begun_at is not None and self.begun_at < schedule.latest

    def get_extra_state(self) -> Tensor:
        """Return the numbers for a checkpoint, in host memory."""
        begun_at = -1.0 if self.begun_at is None else self.begun_at
        return torch.tensor([self.num_seen, begun_at], dtype=torch.float64, device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        """Load the numbers from a checkpoint."""
        num_seen, begun_at = state.tolist()
        self.num_seen, self.begun_at = int(num_seen), None if begun_at < 0 else begun_at

    @torch.no_grad()
    def _has_fallen(self) -> bool:
        if self.num_seen < len(self.losses):
            return False
        losses = self.losses.clone()
        if distributed.is_available() and distributed.is_initialized():
            # Ranks have different batches, but must begin at the same step.
            distributed.all_reduce(losses)
            losses /= distributed.get_world_size()
        first, last = losses.split((_NUM_FIRST, _NUM_LAST))
        return bool(first.mean() - last.mean() > last.std())
