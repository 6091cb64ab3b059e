"""Sequence classification: one label for a text or text pair."""

from collections.abc import Sequence

from datasets import DatasetDict

from gating.data.labels import hint_at_regression
from gating.tasks.base import Prepared
from gating.tasks.labeled import ClassTask, LabeledTexts

__all__ = ["SequenceClassification"]


class SequenceClassification(ClassTask, LabeledTexts):
    """Classification of texts or text pairs, with the metrics of :mod:`gating.tasks.metrics.classes`."""

    def encode(self, taken: DatasetDict, default: Sequence[str]) -> Prepared:
        """Encode labels as classes."""
        labeled = super().encode(taken, default)
        hint_at_regression(taken, list(labeled.config["label2id"]))
        return labeled
