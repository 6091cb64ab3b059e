"""Metrics of classes, and the classes in a model's configuration."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassAUROC,
    MulticlassF1Score,
    MulticlassMatthewsCorrCoef,
    MulticlassPrecision,
    MulticlassRecall,
)
from torchmetrics.utilities import dim_zero_cat

from gating.report.score import Score
from gating.tasks.metrics.choice import ChosenMetrics

__all__ = ["CLASS_METRICS", "build_class_metrics", "class_config"]


class _OfSecond:
    """Mixin for a metric of the second of two classes, the positive one, as in GLUE; NaN on data without it."""

    def compute(self: Any) -> Any:
        value = super().compute()[1]  # type: ignore[misc]
        return torch.where((self.tp + self.fn)[1] > 0, value, torch.nan)


class _F1OfSecond(_OfSecond, MulticlassF1Score):
    """F1 of the second of two classes."""


class _PrecisionOfSecond(_OfSecond, MulticlassPrecision):
    """Precision of the second of two classes."""


class _RecallOfSecond(_OfSecond, MulticlassRecall):
    """Recall of the second of two classes."""


class _AUROC(MulticlassAUROC):
    """Mean of the AUROC of each class that is the label of some examples and not of others; NaN without any."""

    def compute(self) -> Any:
        with warnings.catch_warnings():
            # torchmetrics warns of other classes, and counts them as 0.
            warnings.simplefilter("ignore")
            values = super().compute()
        labels = dim_zero_cat(self.target)
        counts = torch.bincount(labels, minlength=len(values))
        return values[(counts > 0) & (counts < len(labels))].mean()


class _Matthews(MulticlassMatthewsCorrCoef):
    """Matthews' correlation coefficient; NaN with labels of one class, and 0 with equal predictions.

    That of torchmetrics is neither for two classes, but depends on the share of correct predictions.
    """

    def compute(self) -> Any:
        counts = self.confmat.cpu().double()
        labels, predictions, total = counts.sum(1), counts.sum(0), counts.sum()
        spreads = [total**2 - (numbers**2).sum() for numbers in (labels, predictions)]
        covariance = counts.trace() * total - labels @ predictions
        value = covariance / (spreads[0] * spreads[1]).sqrt() if spreads[1] > 0 else covariance
        return torch.where(spreads[0] > 0, value, torch.nan).float().to(self.device)


# F1, precision and recall of two classes are those of the second one; of more classes they are macro averages.
CLASS_METRICS: dict[str, Callable[[int], Metric]] = {
    "accuracy": lambda num_classes: MulticlassAccuracy(num_classes, average="micro"),
    "f1": lambda num_classes: _F1OfSecond(2, average="none") if num_classes == 2 else MulticlassF1Score(num_classes),
    "matthews": _Matthews,
    "mcc": _Matthews,
    "macro_f1": lambda num_classes: MulticlassF1Score(num_classes, average="macro"),
    "weighted_f1": lambda num_classes: MulticlassF1Score(num_classes, average="weighted"),
    "precision": lambda num_classes: (
        _PrecisionOfSecond(2, average="none") if num_classes == 2 else MulticlassPrecision(num_classes)
    ),
    "recall": lambda num_classes: (
        _RecallOfSecond(2, average="none") if num_classes == 2 else MulticlassRecall(num_classes)
    ),
    "macro_precision": lambda num_classes: MulticlassPrecision(num_classes, average="macro"),
    "macro_recall": lambda num_classes: MulticlassRecall(num_classes, average="macro"),
    "balanced_accuracy": lambda num_classes: MulticlassAccuracy(num_classes, average="macro"),
    "auroc": lambda num_classes: _AUROC(num_classes, average="none"),
}


def build_class_metrics(
    chosen: ChosenMetrics, default: Sequence[str], *, num_classes: int
) -> tuple[MetricCollection, Score]:
    """Return the chosen metrics of classes, and the score by which runs are compared."""
    labels = torch.arange(2 * min(num_classes, 32)) % num_classes
    logits = torch.linspace(-1, 1, len(labels) * num_classes).sin().view(len(labels), num_classes)
    return chosen.build(
        default,
        make=lambda name: (CLASS_METRICS[name](num_classes), Score(name)),
        arguments={"num_classes": num_classes, "task": "multiclass"},
        example=(logits, labels),
    )


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
