"""Metrics of the tasks by their names."""

from collections.abc import Sequence

from torchmetrics import MetricCollection

from gating.tasks.metrics.classes import build_class_metrics, choose_class_metrics
from gating.tasks.metrics.numbers import build_number_metrics, choose_number_metrics
from gating.tasks.metrics.tokens import build_token_metrics, choose_token_metrics


def class_metrics(names: Sequence[str], *, num_classes: int) -> MetricCollection:
    """Return metrics of classes."""
    return build_class_metrics(choose_class_metrics(names, None), (), num_classes=num_classes)[0]


def number_metrics(names: Sequence[str]) -> MetricCollection:
    """Return metrics of numbers."""
    return build_number_metrics(choose_number_metrics(names, None), ())[0]


def token_metrics(vocab_size: int) -> MetricCollection:
    """Return perplexity and accuracy."""
    return build_token_metrics(choose_token_metrics(None, None), vocab_size=vocab_size)[0]
