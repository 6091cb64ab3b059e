"""Metrics that settings choose: by their names, or as classes of torchmetrics or of a user."""

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torchmetrics import Metric, MetricCollection

from gating.errors import InputError, explain
from gating.report.score import Score

# Names; or by name a metric, or a class or function that returns one, or None for the task's metric of that name.
Metrics = Sequence[str] | Mapping[str, Any]


@dataclass(frozen=True)
class ChosenMetrics:
    """The metrics that settings choose, and the one by which runs are compared.

    Attributes:
        metrics: The metrics; None for those of the data or the task.
        score: Name of the metric by which runs are compared; the first if None.
        known: Names of metrics that the task has.
    """

    metrics: Metrics | None
    score: str | None
    known: Collection[str]

    def __post_init__(self) -> None:
        if self.metrics is not None:
            self.read(())

    def read(self, default: Sequence[str]) -> dict[str, Any]:
        """Return the metrics by name, or those of ``default`` if none are chosen."""
        chosen = default if self.metrics is None else self.metrics
        choices = dict(chosen) if isinstance(chosen, Mapping) else dict.fromkeys(chosen)
        for name, choice in choices.items():
            if choice is None and name not in self.known:
                raise InputError(f"task.metrics has {name!r}. There are {', '.join(self.known)}.")
        if not choices:
            raise InputError(f"task.metrics is empty: give one or several of {', '.join(self.known)}.")
        if self.score is not None and self.score not in choices:
            raise InputError(f"task.score={self.score} is not among task.metrics=[{','.join(choices)}].")
        return choices

    def build(
        self,
        default: Sequence[str],
        *,
        make: Callable[[str], tuple[Metric, Score]],
        arguments: Mapping[str, Any] | None = None,
    ) -> tuple[MetricCollection, Score]:
        """Return the metrics, by default those of ``default``, and the score by which runs are compared.

        ``make`` is a function from a known name to the metric and its score; ``arguments`` are values from the data,
        for the classes that take them.
        """
        made = {
            name: make(name) if choice is None else _create(name, choice, arguments or {})
            for name, choice in self.read(default).items()
        }
        for name, (metric, score) in made.items():
            metric.formats = {name: score}
        # In groups, states of equal names and first values would be taken for the same.
        metrics = MetricCollection({name: metric for name, (metric, _) in made.items()}, compute_groups=False)
        return metrics, made[self.score or next(iter(made))][1]


def _create(name: str, choice: Any, arguments: Mapping[str, Any]) -> tuple[Metric, Score]:
    """Return a metric with the arguments from the data that it takes and that are not given, and its score."""
    called, given = (choice.func, choice.keywords) if isinstance(choice, partial) else (choice, {})
    try:
        if isinstance(choice, Metric):
            metric = choice.clone()
        else:
            taken = inspect.signature(called).parameters
            metric = called(**{**{key: value for key, value in arguments.items() if key in taken}, **given})
    except (TypeError, ValueError) as error:
        raise InputError(f"task.metrics.{name} cannot be used: {explain(error)}") from error
    return metric, score_of(name, metric)


def score_of(name: str, metric: Metric) -> Score:
    """Return the format of a metric: a percentage if its values are from 0 to 1."""
    is_share = (metric.plot_lower_bound, metric.plot_upper_bound) == (0, 1)
    format: dict[str, Any] = {} if is_share else {"scale": 1, "unit": ""}
    return Score(name, **format, higher_is_better=metric.higher_is_better is not False)
