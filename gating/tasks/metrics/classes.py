"""Metrics of classes by their names, and what a model's configuration says of classes."""

from collections.abc import Callable, Sequence
from typing import Any

from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score, MulticlassMatthewsCorrCoef

from gating.errors import InputError

__all__ = ["class_config", "class_metrics"]

_METRICS: dict[str, Callable[[int], Metric]] = {
    "accuracy": lambda num_classes: MulticlassAccuracy(num_classes, average="micro"),
    "f1": lambda num_classes: _F1OfSecond(num_classes) if num_classes == 2 else MulticlassF1Score(num_classes),
    "matthews": lambda num_classes: MulticlassMatthewsCorrCoef(num_classes),
}


def class_metrics(names: Sequence[str], *, num_classes: int) -> MetricCollection:
    """Return metrics of class predictions by their names.

    Args:
        names: Of ``accuracy``; ``f1``, of the second class where there are two, else the mean over classes; and
            ``matthews``, Matthews' correlation coefficient.
        num_classes: Number of classes.

    Raises:
        ValueError: There is no metric of this name.
    """
    for name in names:
        if name not in _METRICS:
            raise InputError(
                f"There is no metric {name!r} of classes; choose of {', '.join(_METRICS)} with task.metrics."
            )
    return MetricCollection({name: _METRICS[name](num_classes) for name in names})


def class_config(label_names: Sequence[str]) -> dict[str, Any]:
    """Return how a model's configuration says which classes there are."""
    return {
        "num_labels": len(label_names),
        "id2label": dict(enumerate(label_names)),
        "label2id": {name: number for number, name in enumerate(label_names)},
    }


class _F1OfSecond(MulticlassF1Score):
    """F1 of the second of two classes, as GLUE counts it: the one that something is found in."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes, average="none")

    def compute(self) -> Any:
        return super().compute()[1]
