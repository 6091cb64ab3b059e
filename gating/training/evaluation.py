"""Evaluation of a model outside of training."""

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from lightning_fabric.utilities import move_data_to_device
from torch import Tensor
from torchmetrics import MetricCollection
from transformers import PreTrainedModel

from gating.data.examples import Batch, model_inputs, num_rows, num_targets
from gating.distributed.collectives import all_reduce_sum, gather_objects
from gating.errors import InputError
from gating.proof.outputs import evaluating
from gating.sharding.plan import gathered_root
from gating.tasks.base import Baseline, Task


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
        model: The model, on the device to use; each module keeps its mode.
        batches: Batches with labels.
        task: Task that updates the metrics from model outputs.
        metrics: Metrics of the task; not modified.
    """
    metrics = metrics.clone().to(model.device)
    with gathered_root(model), evaluating(model):
        for batch in batches:
            on_device = move_data_to_device(batch, model.device)
            task.update(metrics, on_device, outputs=model(**model_inputs(on_device)), model=model)
    return {name: to_number(value) for name, value in metrics.compute().items()}


class Tally:
    """The number of evaluated examples, and the metrics of a baseline on them."""

    def __init__(
        self, task: Task, metrics: MetricCollection, baseline: Baseline | None, *, model: PreTrainedModel
    ) -> None:
        """Begin with no example; the metrics are those of the task, and not modified."""
        self._task, self._baseline, self._model = task, baseline, model
        self._metrics = {name: MetricCollection({name: one}) for name, one in metrics.clone().to(model.device).items()}
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
                self._add(self._baseline, move_data_to_device(batch, self._model.device))
            yield batch

    def _add(self, baseline: Baseline, batch: Batch) -> None:
        outputs = baseline.outputs(batch["labels"])
        for name, metric in list(self._metrics.items()):
            try:
                self._task.update(metric, batch, outputs=outputs, model=self._model)
            except Exception:  # Metrics of users raise errors of any class, and need not score constants.
                del self._metrics[name]

    def count(self) -> tuple[int, int]:
        """Return the number of examples and of targets, such as tokens, over all ranks."""
        examples = set[int]().union(*gather_objects(self._examples))
        return len(examples) or all_reduce_sum(self._rows), len(examples) or all_reduce_sum(self._targets)

    def of_baseline(self) -> dict[str, float]:
        """Return the finite metrics of the baseline, over all ranks; empty without one."""
        if self._baseline is None:
            return {}
        values = dict[str, float]()
        for metric in self._metrics.values():
            with suppress(Exception), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                values |= {name: to_number(value) for name, value in metric.compute().items()}
        undefined = {name: value for name, value in self._baseline.undefined.items() if name in values}
        return undefined | {name: value for name, value in values.items() if np.isfinite(value)}


def to_number(value: Tensor) -> float:
    """Return the value of a metric: of those that are equal in single precision, the one with the fewest digits.

    >>> to_number(torch.tensor(2 / 3)), to_number(torch.tensor(2 / 3, dtype=torch.float64))
    (0.6666667, 0.6666666666666666)
    """
    if value.dtype == torch.float64 or not value.is_floating_point():
        return float(value)
    return float(str(np.float32(float(value))))


def count_steps(trainer: Mapping[str, Any], *, num_batches: int) -> int:
    """Return the number of optimizer steps of a whole run, search and recovery together.

    Args:
        trainer: Settings of the trainer: ``max_steps`` or, if that is -1, ``max_epochs``; ``limit_train_batches`` and
            ``accumulate_grad_batches``.
        num_batches: Batches of one rank in an epoch.

    Raises:
        InputError: The run would have no step.

    Example:
        >>> settings = {"max_epochs": 3, "max_steps": -1, "limit_train_batches": 1.0, "accumulate_grad_batches": 2}
        >>> count_steps(settings, num_batches=25)
        39
    """
    accumulate, limit = trainer["accumulate_grad_batches"], trainer["limit_train_batches"]
    epochs, steps = trainer["max_epochs"], int(trainer["max_steps"])
    used = _used_batches(limit, num_batches=num_batches)
    if steps == -1 and accumulate > 0:
        steps = int(epochs * -(-used // accumulate))
    if min(accumulate, used, steps) < 1:
        raise InputError(
            f"There is nothing to train with trainer.max_epochs={epochs}, trainer.max_steps={trainer['max_steps']}, "
            f"trainer.limit_train_batches={limit} and trainer.accumulate_grad_batches={accumulate}."
        )
    return steps


def validation_interval(trainer: Mapping[str, Any], *, num_batches: int) -> int | float:
    """Return ``val_check_interval``: a number of batches, at most an epoch, or a fraction of an epoch."""
    interval: int | float = trainer["val_check_interval"]
    used = _used_batches(trainer["limit_train_batches"], num_batches=num_batches)
    return min(interval, used) if isinstance(interval, int) else interval


def _used_batches(limit: int | float, *, num_batches: int) -> int:
    """Return the number of batches used, where ``limit`` is a number of batches or a fraction of them."""
    return min(num_batches, limit) if isinstance(limit, int) else int(num_batches * min(limit, 1.0))


def count_evaluated(trainer: Mapping[str, Any], split: str, *, num_batches: int) -> int:
    """Return the number of batches of a split that are evaluated, during and at the end of phases.

    Args:
        trainer: Settings of the trainer: ``limit_val_batches`` and ``limit_test_batches``, numbers or fractions.
        split: ``validation`` or ``test``.
        num_batches: Number of batches of the split.

    Raises:
        InputError: The fraction is less than one batch, but not 0.
    """
    name = {"validation": "limit_val_batches", "test": "limit_test_batches"}[split]
    limit = 1.0 if trainer.get(name) is None else trainer[name]
    used = _used_batches(limit, num_batches=num_batches)
    if limit > 0 and used < 1:
        raise InputError(f"trainer.{name}={limit} of {num_batches} {split} batch(es) is less than one.")
    return used
