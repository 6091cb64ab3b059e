"""Sequence classification: one label for a text or text pair."""

from collections.abc import Mapping, Sequence
from typing import Any

from datasets import DatasetDict
from torchmetrics import MetricCollection
from transformers import PreTrainedModel

from gating.data.batches import Batch
from gating.data.labels import hint_at_regression
from gating.tasks.labeled import Labeled, LabeledTexts, encode_classes
from gating.tasks.metrics.classes import choose_class_metrics

__all__ = ["SequenceClassification"]


class SequenceClassification(LabeledTexts):
    """Classification of texts or text pairs, with the metrics of :mod:`gating.tasks.metrics.classes`."""

    has_classes = True
    choose_metrics = staticmethod(choose_class_metrics)

    def encode(self, taken: DatasetDict, default: Sequence[str]) -> Labeled:
        """Encode labels as classes."""
        labeled, names = encode_classes(taken, self._metrics, default)
        hint_at_regression(taken, names)
        return labeled

    def update(
        self, metrics: MetricCollection, batch: Batch, *, outputs: Mapping[str, Any], model: PreTrainedModel
    ) -> None:
        """Compare the class with the largest logit to the label."""
        metrics.update(outputs["logits"].float(), batch["labels"])
