"""Metrics of labels, classes or numbers, and the classes in a model's configuration."""

import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torchmetrics import (
    MeanAbsoluteError,
    MeanSquaredError,
    Metric,
    MetricCollection,
    PearsonCorrCoef,
    R2Score,
    SpearmanCorrCoef,
)
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


def _positive(metric: type[Any]) -> Callable[[int], Metric]:
    """Return a metric of the second of two classes, as in GLUE, NaN on data without it; of more classes, their mean."""

    class OfSecond(metric):  # type: ignore[misc]
        """The metric of the second class."""

        def compute(self) -> Any:
            return torch.where((self.tp + self.fn)[1] > 0, super().compute()[1], torch.nan)

    return lambda num_classes: OfSecond(2, average="none") if num_classes == 2 else metric(num_classes)


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


CLASS_METRICS: dict[str, Callable[[int], Metric]] = {
    "accuracy": partial(MulticlassAccuracy, average="micro"),
    "f1": _positive(MulticlassF1Score),
    "matthews": _Matthews,
    "mcc": _Matthews,
    "macro_f1": partial(MulticlassF1Score, average="macro"),
    "weighted_f1": partial(MulticlassF1Score, average="weighted"),
    "precision": _positive(MulticlassPrecision),
    "recall": _positive(MulticlassRecall),
    "macro_precision": partial(MulticlassPrecision, average="macro"),
    "macro_recall": partial(MulticlassRecall, average="macro"),
    "balanced_accuracy": partial(MulticlassAccuracy, average="macro"),
    "auroc": partial(_AUROC, average="none"),
}


def build_class_metrics(
    chosen: ChosenMetrics, default: Sequence[str], *, num_classes: int
) -> tuple[MetricCollection, Score]:
    """Return the chosen metrics of classes, and the score by which runs are compared."""
    return chosen.build(
        default,
        make=lambda name: (CLASS_METRICS[name](num_classes), Score(name)),
        arguments={"num_classes": num_classes, "task": "multiclass"},
    )


def log_frequencies(numbers: Iterable[int], num_classes: int) -> Tensor:
    """Return the logarithms of the frequencies of classes, ``[num_classes]``, each counted once more than it occurs."""
    counts = torch.bincount(torch.tensor([*numbers]), minlength=num_classes) + 1
    return (counts / counts.sum()).log()


def class_config(label_names: Sequence[str]) -> dict[str, Any]:
    """Return the configuration values that describe classes."""
    return {
        "num_labels": len(label_names),
        "id2label": dict(enumerate(label_names)),
        "label2id": {name: number for number, name in enumerate(label_names)},
    }


# Sums in single precision lose digits; Apple's GPUs have no other.
PRECISION = torch.float32 if torch.backends.mps.is_available() else torch.float64

NUMBER_METRICS: dict[str, tuple[Callable[[], Metric], Score]] = {
    "pearson": (PearsonCorrCoef, Score("pearson", unit="")),
    "spearman": (SpearmanCorrCoef, Score("spearman", unit="")),
    "mse": (MeanSquaredError, Score("mse", scale=1, unit="", higher_is_better=False)),
    "mae": (MeanAbsoluteError, Score("mae", scale=1, unit="", higher_is_better=False)),
    "rmse": (partial(MeanSquaredError, squared=False), Score("rmse", scale=1, unit="", higher_is_better=False)),
    "r2": (R2Score, Score("r2", scale=1, unit="")),
}


def build_number_metrics(chosen: ChosenMetrics, default: Sequence[str]) -> tuple[MetricCollection, Score]:
    """Return the chosen metrics of numbers, of double precision, and the score by which runs are compared."""
    return chosen.build(default, make=_make)


def _make(name: str) -> tuple[Metric, Score]:
    make, score = NUMBER_METRICS[name]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*will save all targets")
        return make().set_dtype(PRECISION), score
