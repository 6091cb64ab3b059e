"""Metrics of numbers."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.functional import (
    mean_absolute_error,
    mean_squared_error,
    pearson_corrcoef,
    r2_score,
    spearman_corrcoef,
)
from torchmetrics.utilities import dim_zero_cat

from gating.report.score import Score
from gating.tasks.metrics.choice import ChosenMetrics

__all__ = ["build_number_metrics", "choose_number_metrics", "correlations_in"]

_METRICS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Score]] = {
    "pearson": (pearson_corrcoef, Score("pearson", unit="")),
    "spearman": (spearman_corrcoef, Score("spearman", unit="")),
    "mse": (mean_squared_error, Score("mse", scale=1, unit="", higher_is_better=False)),
    "mae": (mean_absolute_error, Score("mae", scale=1, unit="", higher_is_better=False)),
    "rmse": (partial(mean_squared_error, squared=False), Score("rmse", scale=1, unit="", higher_is_better=False)),
    "r2": (r2_score, Score("r2", scale=1, unit="")),
}

_CORRELATIONS = (pearson_corrcoef, spearman_corrcoef)


choose_number_metrics = partial(ChosenMetrics, known=_METRICS, of="numbers")


def build_number_metrics(chosen: ChosenMetrics, default: Sequence[str]) -> tuple[MetricCollection, Score]:
    """Return the chosen metrics of numbers, and the score by which runs are compared.

    Raises:
        InputError: A name is unknown, or a metric does not fit numbers.
    """
    targets = torch.arange(1.0, 9.0)
    return chosen.build(
        default,
        make=lambda name: (_OfAllNumbers(*_METRICS[name]), _METRICS[name][1]),
        arguments={},
        example=(targets.sqrt(), targets),
    )


def correlations_in(metrics: MetricCollection) -> list[str]:
    """Return the names of those metrics of numbers that are correlations, which constants leave undefined."""
    return [str(name) for name, metric in metrics.items() if getattr(metric, "function", None) in _CORRELATIONS]


class _OfAllNumbers(Metric):
    """A metric of all numbers at once, in double precision, since accumulation in single precision loses digits."""

    full_state_update = False
    predictions: list[Tensor]
    targets: list[Tensor]

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor], score: Score) -> None:
        super().__init__()
        self.function = function
        self._score = score
        for name in ("predictions", "targets"):
            self.add_state(name, [], dist_reduce_fx="cat")

    @property
    def higher_is_better(self) -> bool:  # type: ignore[override]
        return self._score.higher_is_better

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        self.predictions.append(predictions)
        self.targets.append(targets)

    def compute(self) -> Tensor:
        # On the CPU, because MPS has no double precision.
        predictions, targets = (dim_zero_cat(state).cpu().double() for state in (self.predictions, self.targets))
        is_correlation = self.function in _CORRELATIONS
        undefined = [targets] * (is_correlation or self.function is r2_score) + [predictions] * is_correlation
        if any(bool((numbers == numbers[0]).all()) for numbers in undefined):
            # torchmetrics has 0, or NaN with a warning.
            return torch.tensor(torch.nan, device=self.device)
        return self.function(predictions, targets).float().to(self.device)
