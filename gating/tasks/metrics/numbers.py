"""Metrics of numbers."""

import warnings
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torchmetrics import (
    MeanAbsoluteError,
    MeanSquaredError,
    Metric,
    MetricCollection,
    PearsonCorrCoef,
    R2Score,
    SpearmanCorrCoef,
)

from gating.report.score import Score
from gating.tasks.metrics.choice import ChosenMetrics

__all__ = ["NUMBER_METRICS", "PRECISION", "build_number_metrics"]

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
