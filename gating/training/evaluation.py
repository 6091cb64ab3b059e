"""Evaluation of a model outside of training."""

from collections.abc import Iterable

import torch
from lightning_fabric.utilities import move_data_to_device
from torchmetrics import MetricCollection
from transformers import PreTrainedModel

from gating.data.batches import Batch, model_inputs
from gating.sharding.plan import gathered_root
from gating.tasks.base import Task

__all__ = ["evaluate"]


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
    return {name: float(value) for name, value in metrics.compute().items()}
