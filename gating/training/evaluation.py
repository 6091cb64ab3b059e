"""Evaluation of a model outside of training."""

import warnings
from collections.abc import Iterable, Iterator
from contextlib import suppress

import numpy as np
import torch
from lightning_fabric.utilities import move_data_to_device
from torch import Tensor
from torchmetrics import MetricCollection
from transformers import PreTrainedModel

from gating.data.batches import Batch, model_inputs, num_rows, num_targets
from gating.distributed.collectives import all_reduce_sum, gather_objects
from gating.sharding.plan import gathered_root
from gating.tasks.base import Task
from gating.tasks.metrics.baselines import Baseline


@torch.no_grad()
def evaluate(
    model: PreTrainedModel,
    batches: Iterable[Batch],
    *,
    task: Task,
    metrics: MetricCollection,
) -> dict[str, float]:
    """Return the metrics of a model in evaluation mode, with gates at their deterministic values.

    Args:
        model: The model, on the device to use; its training mode is restored.
        batches: Batches with labels.
        task: Task that updates the metrics from model outputs.
        metrics: Metrics of the task; not modified.
    """
    was_training = model.training
    model.eval()
    metrics = metrics.clone().to(model.device)
    with gathered_root(model):
        for batch in batches:
            on_device = move_data_to_device(batch, model.device)
            task.update(metrics, on_device, outputs=model(**model_inputs(on_device)), model=model)
    model.train(was_training)
    return {name: to_number(value) for name, value in metrics.compute().items()}


class Tally:
    """The number of evaluated examples, and the metrics of a baseline on them."""

    def __init__(self, metrics: MetricCollection, baseline: Baseline | None, *, device: torch.device) -> None:
        """Begin with no example; the metrics are those of the task, and not modified."""
        self._baseline, self._device = baseline, device
        self._metrics = {name: MetricCollection({name: metric}) for name, metric in metrics.clone().to(device).items()}
        self._rows = self._targets = 0
        self._examples = set[int]()

    def watch(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield batches as they are, and count them."""
        for batch in batches:
            self._targets += num_targets(batch)
            self._rows += num_rows(batch)
            if "metric_example" in batch:
                # Several windows are one example.
                self._examples.update(batch["metric_example"].tolist())
            if self._baseline is not None:
                self._add(self._baseline, move_data_to_device(batch, self._device))
            yield batch

    def _add(self, baseline: Baseline, batch: Batch) -> None:
        for name, metric in list(self._metrics.items()):
            try:
                baseline.update(metric, batch)
            except Exception:  # Metrics of users raise errors of any class, and need not score constants.
                del self._metrics[name]

    def count(self) -> tuple[int, int]:
        """Return the number of examples and of targets, such as tokens, over all ranks."""
        examples = set[int]().union(*gather_objects(self._examples))
        return len(examples) or all_reduce_sum(self._rows), len(examples) or all_reduce_sum(self._targets)

    def of_baseline(self) -> dict[str, float]:
        """Return the finite metrics of the baseline, over all ranks; empty without one."""
        values = dict[str, float]()
        for name, metric in self._metrics.items():
            # Without a baseline, and for metrics of generated texts, there is no update.
            if self._baseline is not None and metric[name].update_called:
                values[name] = self._baseline.undefined.get(name, np.nan)
                with suppress(Exception), warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    value = to_number(metric.compute()[name])
                    values[name] = value if np.isfinite(value) else values[name]
        return {name: value for name, value in values.items() if np.isfinite(value)}


def to_number(value: Tensor) -> float:
    """Return the value of a metric: of those that are equal in single precision, the one with the fewest digits.

    >>> to_number(torch.tensor(2 / 3)), to_number(torch.tensor(2 / 3, dtype=torch.float64))
    (0.6666667, 0.6666666666666666)
    """
    if value.dtype == torch.float64 or not value.is_floating_point():
        return float(value)
    return float(str(np.float32(float(value))))
