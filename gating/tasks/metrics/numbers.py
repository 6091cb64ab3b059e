"""Metrics of numbers."""

from collections.abc import Callable, Sequence

from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.functional import mean_absolute_error, mean_squared_error, pearson_corrcoef, spearman_corrcoef
from torchmetrics.utilities import dim_zero_cat

from gating.errors import InputError
from gating.report.score import Score

__all__ = ["number_metrics"]

_METRICS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Score]] = {
    "pearson": (pearson_corrcoef, Score("pearson", unit="")),
    "spearman": (spearman_corrcoef, Score("spearman", unit="")),
    "mse": (mean_squared_error, Score("mse", scale=1, unit="")),
    "mae": (mean_absolute_error, Score("mae", scale=1, unit="")),
}


def number_metrics(names: Sequence[str]) -> tuple[MetricCollection, Score]:
    """Return metrics of numbers by name, and the score of the first.

    Args:
        names: Of the correlations ``pearson`` and ``spearman``, and the mean squared and absolute errors ``mse`` and
            ``mae``.

    Raises:
        ValueError: A name is unknown.
    """
    for name in names:
        if name not in _METRICS:
            raise InputError(f"task.metrics: numbers have no metric {name!r}; choose from {', '.join(_METRICS)}.")
    kinds = {name: _Correlation if name in ("pearson", "spearman") else _Error for name in names}
    return MetricCollection({name: kind(_METRICS[name][0]) for name, kind in kinds.items()}), _METRICS[names[0]][1]


class _OfAllNumbers(Metric):
    """A metric of all numbers at once, in double precision, since accumulation in single precision loses digits."""

    full_state_update = False
    predictions: list[Tensor]
    targets: list[Tensor]

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self._function = function
        for name in ("predictions", "targets"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        self.predictions.append(predictions)
        self.targets.append(targets)

    def compute(self) -> Tensor:
        # On the CPU, because MPS has no double precision.
        numbers = (dim_zero_cat(state).cpu().double() for state in (self.predictions, self.targets))
        return self._function(*numbers).float().to(self.device)


class _Correlation(_OfAllNumbers):
    higher_is_better = True


class _Error(_OfAllNumbers):
    higher_is_better = False
