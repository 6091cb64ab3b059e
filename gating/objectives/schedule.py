"""Schedule of the number of open heads during the search."""

from dataclasses import dataclass
from typing import Literal

from gating.errors import InputError

__all__ = ["BudgetSchedule"]


@dataclass(frozen=True)
class BudgetSchedule:
    """A descent from all heads to the budget.

    Attributes:
        start: Share of the search before the descent begins.
        end: Share of the search after which the number of heads stays at the budget.
        shape: ``linear``, or ``cubic``: fast at first, slow at the end (Zhu and Gupta 2017, arXiv 1710.01878).
    """

    start: float = 0.13
    end: float = 0.67
    shape: Literal["linear", "cubic"] = "linear"

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.end <= 1:
            raise InputError(
                f"The schedule must have 0 <= start <= end <= 1, got start={self.start} and end={self.end}."
            )
        if self.shape not in ("linear", "cubic"):
            raise InputError(f"The schedule's shape is linear or cubic, got {self.shape!r}.")

    def target(self, progress: float, *, total: float, budget: float) -> float:
        """Return the number of heads that may be open.

        Args:
            progress: Share of the search that is done, 0 to 1.
            total: Number of open heads at the start.
            budget: Number of open heads at the end.

        Example:
            >>> BudgetSchedule(start=0.0, end=1.0).target(0.25, total=72, budget=18)
            58.5
        """
        if progress >= self.end:
            return budget
        if progress <= self.start:
            return total
        left = 1 - (progress - self.start) / (self.end - self.start)
        return budget + (total - budget) * (left**3 if self.shape == "cubic" else left)
