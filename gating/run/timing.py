"""The timings of a run: their batches, and the latency of the compact model beside the dense one."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, PositiveInt
from transformers import PreTrainedModel

from gating.data.datamodule import ExampleDataModule
from gating.data.tokens import truncation_length
from gating.distributed.collectives import world_size
from gating.errors import InputError
from gating.pruning.latency import CopyTimer, LatencyComparison, TimeBudget, describe_batch

_NUM_PASSES = 30  # with which the timings of two shapes are exact
# Largest number of seconds of a stage where other processes wait, whose connections end after ten minutes.
_LONGEST_WAIT_S = 240.0
_SHORT_SIZE, _SHORT_LENGTH = 1, "median"  # one text, beside the batch of the settings


@dataclass(frozen=True)
class LatencySettings:
    """Settings of the timings of a run.

    Attributes:
        batch_size: Number of examples in the timed batch.
        length: Length of its texts in tokens: the ``median`` of the evaluated data, its 95th percentile (``p95``), its
            longest (``max``), or a number.
        max_seconds: Seconds that all timings of a run may take together; None for 5 % of the run, at least 20 and at
            most 120 seconds.
    """

    batch_size: PositiveInt = 8
    length: Literal["median", "p95", "max"] | PositiveInt = "p95"
    max_seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None


@dataclass(frozen=True)
class RunTiming:
    """The batches of a split that a run or a command times, and the time for it."""

    settings: LatencySettings
    module: ExampleDataModule
    split: str = "validation"

    @cached_property
    def budget(self) -> TimeBudget:
        """The time for all of it."""
        return TimeBudget(self.settings.max_seconds)

    @contextmanager
    def stage(self, *, share: float = 1.0) -> Iterator[float]:
        """Take a share of the time that is left, in a ``with`` block; see :meth:`TimeBudget.stage`."""
        longest = _LONGEST_WAIT_S if world_size() > 1 else math.inf
        with self.budget.stage(share=share, longest=longest) as seconds:
            yield seconds

    @property
    def length(self) -> str:
        """Words for the length of the texts; empty for a number, which the shape has."""
        return self.settings.length if isinstance(self.settings.length, str) else ""

    def check(self, model: PreTrainedModel) -> None:
        """Raise ``InputError`` if the batch cannot be made, or its texts are longer than the model takes."""
        length = self.settings.length
        if isinstance(length, int) and (limit := truncation_length(model, length, name="latency.length")) < length:
            raise InputError(f"latency.length={length}: the model takes at most {limit} tokens.")
        self.batch(torch.device("cpu"))

    def batch(self, device: torch.device) -> dict[str, Any]:
        """Return the batch of the settings on a device."""
        batch = self.module.timing_batch(self.settings.length, size=self.settings.batch_size, split=self.split)
        return {name: tensor.to(device) for name, tensor in batch.items()}

    def fitted_batch(
        self, model: PreTrainedModel, *, passes: int, run_seconds: Callable[[float], float]
    ) -> dict[str, Any]:
        """Return the batch with the rows that fit ``passes`` exact forward passes, and print it if they are fewer.

        ``run_seconds`` is a function from the seconds of a pass of the batch to those of the run.
        """
        batch = self.batch(model.device)
        is_first = self.budget.rows is None
        fitted = self.budget.fit(model, batch, passes=passes, run_seconds=run_seconds)
        whole, timed = describe_batch(batch), describe_batch(fitted)
        if is_first and whole != timed:
            print(
                f"Forward passes of {whole} are too slow to be repeated in {self.budget.seconds:.0f} s: {timed} are "
                "timed. For more, raise latency.max_seconds.",
                flush=True,
            )
        return fitted

    def compare(
        self, dense: PreTrainedModel, compact: PreTrainedModel, *, run_seconds: float
    ) -> tuple[LatencyComparison, LatencyComparison | None]:
        """Time the batch of the settings, and one text of median length if that is another, in the rest of the time."""
        batch = self.fitted_batch(dense, passes=_NUM_PASSES, run_seconds=lambda _: run_seconds)
        one = self.module.timing_batch(_SHORT_LENGTH, size=_SHORT_SIZE, split=self.split)
        is_short = describe_batch(one) == describe_batch(batch)
        with self.stage() as seconds:
            ours = CopyTimer(dense, batch, seconds=seconds, length=self.length)
            latency = ours.time(compact, share=1.0 if is_short else 2 / 3)
            short = None
            if not is_short:
                one = {name: tensor.to(dense.device) for name, tensor in one.items()}
                its = CopyTimer(dense, one, seconds=ours.left, length=_SHORT_LENGTH)
                short = its.time(compact)
        return latency, short
