"""The metrics of a model on some data, outside of training."""

from collections.abc import Iterable

import torch
from torch import Tensor
from torchmetrics import MetricCollection
from transformers import PreTrainedModel

from gating.lightning.tasks import SequenceClassification

__all__ = ["evaluate"]


@torch.no_grad()
def evaluate(
    model: PreTrainedModel,
    batches: Iterable[dict[str, Tensor]],
    *,
    task: SequenceClassification,
    metrics: MetricCollection,
) -> dict[str, float]:
    """Return the metrics of a model, in evaluation mode: gates, where there are any, at their deterministic values.

    Args:
        model: The model, on the device to use.
        batches: What to evaluate on.
        task: What the task makes of outputs.
        metrics: Metrics of the task; a copy of them counts.
    """
    was_training = model.training
    model.eval()
    metrics = metrics.clone().to(model.device)
    for batch in batches:
        on_device = {name: tensor.to(model.device) for name, tensor in batch.items()}
        metrics.update(task.predict(model(**on_device)), on_device["labels"])
    model.train(was_training)
    return {name: float(value) for name, value in metrics.compute().items()}
