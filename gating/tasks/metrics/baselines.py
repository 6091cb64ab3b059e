"""Baselines of scores: the best constant prediction that the training data tell."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pyarrow.compute as pc
import torch
from datasets import Dataset
from torch import Tensor
from torchmetrics import MetricCollection

from gating.data.examples import TARGETS, Batch

__all__ = ["Baseline", "column_mean", "constant_logits", "log_frequencies"]

# Adds the prediction for a batch to metrics: ``add(metrics, constant, batch)``.
Add = Callable[[MetricCollection, Tensor, Batch], None]


@dataclass(frozen=True)
class Baseline:
    """A prediction that is the same for each example.

    Attributes:
        name: Name for tables, such as ``majority class``.
        fit: Function that returns the constant, from the training data.
        add: Function that updates metrics with the constant and the labels of a batch.
        undefined: Values of metrics that a constant prediction leaves undefined, such as 0 for a correlation.
    """

    name: str
    fit: Callable[[], Tensor]
    add: Add
    undefined: Mapping[str, float] = field(default_factory=dict)

    @cached_property
    def constant(self) -> Tensor:
        """The constant, computed when it is first needed."""
        return self.fit()

    def update(self, metrics: MetricCollection, batch: Batch) -> None:
        """Update metrics with the constant prediction for a batch."""
        device = next(batch[name].device for name in TARGETS if name in batch)
        self.add(metrics, self.constant.to(device), batch)


def constant_logits(metrics: MetricCollection, logits: Tensor, batch: Batch) -> None:
    """Update metrics of classes with the same logits, ``[num_classes]``, for each example."""
    metrics.update(logits.expand(len(batch["labels"]), -1), batch["labels"])


def log_frequencies(table: Dataset, column: str, *, size: int, without: tuple[int, ...] = ()) -> Tensor:
    """Return the logarithms of the frequencies of classes or tokens, ``[size]``.

    Each is counted once more than it occurs, so that none is impossible. The column has numbers, or lists of numbers;
    negative ones are no labels, and those in ``without``, such as special tokens, are not counted.
    """
    counts = np.zeros(size, dtype=np.int64)
    # Without the format of a table, images would be decoded.
    for chunk in table.select_columns(column).with_format("arrow").iter(batch_size=10_000):
        values = chunk[column]
        while hasattr(values.type, "value_type"):
            values = pc.list_flatten(values)
        numbers = values.to_numpy()
        counts += np.bincount(numbers[(numbers >= 0) & (numbers < size)], minlength=size)
    counts[list(without)] = 0
    shares = torch.from_numpy(counts + 1).double()
    return (shares / shares.sum()).log().float()


def column_mean(table: Dataset, column: str) -> Tensor:
    """Return the mean of a column of numbers, a scalar."""
    return torch.tensor(float(np.mean(table.with_format("numpy")[column][:], dtype=np.float64)))
