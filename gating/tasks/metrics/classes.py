"""Metrics of classes, and the classes in a model's configuration."""

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
    """Return metrics of classes by name.

    Args:
        names: Of ``accuracy``; ``f1``, that of the second class if there are two, else the macro average; and
            ``matthews``, Matthews' correlation coefficient.
        num_classes: Number of classes.

    Raises:
        ValueError: A name is unknown.
    """
    for name in names:
        if name not in _METRICS:
            raise InputError(
                f"There is no metric {name!r} of classes; choose from {', '.join(_METRICS)} with task.metrics."
            )
    return MetricCollection({name: _METRICS[name](num_classes) for name in names})


def class_config(label_names: Sequence[str]) -> dict[str, Any]:
    """Return the configuration values that describe classes.

    Example:
        >>> class_config(["bad", "good"])
        {'num_labels': 2, 'id2label': {0: 'bad', 1: 'good'}, 'label2id': {'bad': 0, 'good': 1}}
    """
    return {
        "num_labels": len(label_names),
        "id2label": dict(enumerate(label_names)),
        "label2id": {name: number for number, name in enumerate(label_names)},
    }


class _F1OfSecond(MulticlassF1Score):
    """F1 of the second of two classes, the positive one, as in GLUE."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes, average="none")

    def compute(self) -> Any:
        return super().compute()[1]
