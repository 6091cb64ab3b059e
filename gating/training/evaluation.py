"""Evaluation of a model outside of training."""

import warnings
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Evaluation:
    """The metrics of a model, those of a baseline on the same examples, and how much this process has evaluated."""

    metrics: dict[str, float]
    of_baseline: dict[str, float]
    num_rows: int
    num_targets: int
    # Numbers of the examples, where several windows are one.
    examples: set[int]

    def count(self) -> tuple[int, int]:
        """Return the number of examples and of targets, such as tokens, over all ranks."""
        examples = set[int]().union(*gather_objects(self.examples))
        return len(examples) or all_reduce_sum(self.num_rows), len(examples) or all_reduce_sum(self.num_targets)


@torch.no_grad()
def evaluate(
    model: PreTrainedModel,
    batches: Iterable[Batch],
    *,
    task: Task,
    metrics: MetricCollection,
    baseline: Baseline | None = None,
) -> Evaluation:
    """Return the metrics of a model, and of a prediction without one; gates have their deterministic values."""
    ours, its = metrics.clone().to(model.device), metrics.clone().to(model.device)
    of_baseline = {name: MetricCollection({name: metric}) for name, metric in its.items()}
    rows = targets = 0
    examples = set[int]()
    with gathered_root(model), evaluating(model):
        for batch in batches:
            rows, targets = rows + num_rows(batch), targets + num_targets(batch)
            if "metric_example" in batch:
                examples.update(batch["metric_example"].tolist())
            on_device = move_data_to_device(batch, model.device)
            task.update(ours, on_device, outputs=model(**model_inputs(on_device)), model=model)
            if baseline is not None:
                outputs = baseline.outputs(on_device["labels"])
                for name, metric in list(of_baseline.items()):
                    try:
                        task.update(metric, on_device, outputs=outputs, model=model)
                    except Exception:  # Metrics of users raise errors of any class, and need not score constants.
                        del of_baseline[name]
    values = {name: to_number(value) for name, value in ours.compute().items()}
    return Evaluation(values, _baseline_values(baseline, of_baseline.values()), rows, targets, examples)


def _baseline_values(baseline: Baseline | None, metrics: Iterable[MetricCollection]) -> dict[str, float]:
    """Return the finite metrics of the baseline, over all ranks; empty without one."""
    if baseline is None:
        return {}
    values = dict[str, float]()
    for metric in metrics:
        with suppress(Exception), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            values |= {name: to_number(value) for name, value in metric.compute().items()}
    undefined = {name: value for name, value in baseline.undefined.items() if name in values}
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
    """Return the number of optimizer steps of search and recovery together, from the batches of one rank in an epoch.

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
    """Return the number of batches of a split that are evaluated under its limit, a number or a fraction."""
    name = {"validation": "limit_val_batches", "test": "limit_test_batches"}[split]
    limit = 1.0 if trainer.get(name) is None else trainer[name]
    used = _used_batches(limit, num_batches=num_batches)
    if limit > 0 and used < 1:
        raise InputError(f"trainer.{name}={limit} of {num_batches} {split} batch(es) is less than one.")
    return used
