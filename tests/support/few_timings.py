"""Runs without precise measurements of latency, which take most of the time of a tiny run."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from gating.pruning.latency import copies
from gating.pruning.latency.copies import CopyTimer


@contextmanager
def few_timings() -> Iterator[None]:
    """Time the final models of runs and of evaluations with few passes in a ``with`` block."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CopyTimer, "repeats", 1)
        patch.setattr(copies, "_TIMING_SECONDS", 1e-9)
        yield
