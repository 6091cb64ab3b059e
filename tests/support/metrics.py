"""Metrics of the tasks by their names."""

from collections.abc import Sequence

from torchmetrics import MetricCollection

from gating.tasks.metrics.choice import ChosenMetrics
from gating.tasks.metrics.labels import CLASS_METRICS, NUMBER_METRICS, build_class_metrics, build_number_metrics


def class_metrics(names: Sequence[str], *, num_classes: int) -> MetricCollection:
    """Return metrics of classes."""
    return build_class_metrics(ChosenMetrics(names, None, CLASS_METRICS), (), num_classes=num_classes)[0]


def number_metrics(names: Sequence[str]) -> MetricCollection:
    """Return metrics of numbers."""
    return build_number_metrics(ChosenMetrics(names, None, NUMBER_METRICS), ())[0]
