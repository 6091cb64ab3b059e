"""Runs without precise measurements of latency, which take most of the time of a tiny run."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest

from gating.pruning import measure
from gating.pruning.measure import compare_latency


@contextmanager
def few_timings(*modules: str) -> Iterator[None]:
    """Time models with one pass in a ``with`` block.

    Args:
        modules: Modules that compare the latency of models, besides that of runs.
    """
    with pytest.MonkeyPatch.context() as patch:
        for module in ("gating.run.outcome", *modules):
            patch.setattr(f"{module}.compare_latency", partial(compare_latency, repeats=1))
        patch.setattr(measure, "_TIMING_SECONDS", 1e-9)
        yield
