"""Settings of timings: the batch that is timed, and for how long."""

from dataclasses import dataclass
from typing import Literal

from gating.errors import InputError

__all__ = ["LatencySettings", "Length"]

# A length of the data, or a number of tokens.
Length = Literal["median", "p95", "max"] | int


@dataclass(frozen=True)
class LatencySettings:
    """Settings of the timings of a run.

    Attributes:
        batch_size: Number of examples in the timed batch.
        length: Length of its texts in tokens: the ``median`` of the evaluated data, its 95th percentile (``p95``), its
            longest (``max``), or a number.
        max_seconds: Seconds that all timings of a run may take together; None for 5 % of the run, at least 20 and at
            most 120 seconds.
        price_blocks: Whether a search knows that a block takes time as long as anything is left in it; otherwise that
            time is a part of its units' costs.

    Raises:
        InputError: A number is not positive.
    """

    batch_size: int = 8
    length: Length = "p95"
    max_seconds: float | None = None
    price_blocks: bool = False

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise InputError(f"batch_size={self.batch_size}: a batch has at least one example.")
        if isinstance(self.length, int) and self.length < 1:
            raise InputError(f"length={self.length}: a text has at least one token. Give median, p95, max or a number.")
        if self.max_seconds is not None and not 0 < self.max_seconds < float("inf"):
            raise InputError(f"max_seconds={self.max_seconds}: give a number of seconds above 0, or null.")
