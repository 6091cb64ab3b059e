"""Sequence classification: one label for a text or text pair."""

from gating.tasks.labeled import ClassTask, LabeledTexts

__all__ = ["SequenceClassification"]


class SequenceClassification(ClassTask, LabeledTexts):
    """Classification of texts or text pairs, with the metrics of :mod:`gating.tasks.metrics.classes`."""
