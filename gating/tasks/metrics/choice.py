"""Metrics that settings choose: by their names, or as classes of torchmetrics or of a user."""

import difflib
import inspect
import re
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.wrappers import LambdaInputTransformer

from gating.errors import InputError, explain, nearest_name, shorten
from gating.report.score import Score

__all__ = ["ChosenMetrics", "Metrics", "score_of"]

# A name, a metric, or a class or function that returns one, with its arguments.
MetricChoice = str | Metric | Callable[..., Metric]
# Choices in the settings of a task, which are checked here; in a table, None stands for the metric of that name.
Metrics = Sequence[Any] | Mapping[str, Any]

_CALLED = "NAME={_target_: torchmetrics.classification.MulticlassF1Score, average: macro}"
# Numbers of classes with which arguments are tried before the data are known.
_TRIED = (2, 1000)


class ChosenMetrics:
    """The metrics of a task, checked as far as is possible before data are loaded."""

    def __init__(
        self,
        metrics: Metrics | None,
        score: str | None,
        *,
        known: Collection[str],
        of: str,
        fills: Collection[str] = (),
    ) -> None:
        """Check names, classes and arguments.

        Args:
            metrics: The metrics; None for those of the data.
            score: Name of the metric by which runs are compared; the first if None.
            known: Names of metrics that the task has.
            of: Plural of the values that the metrics score, such as ``classes``.
            fills: Names of arguments that come from the data, such as ``num_classes``.

        Raises:
            InputError: A name is unknown, or a metric cannot be created.
        """
        self._known, self._of, self._score = known, of, score
        self._choices = None if metrics is None else self._read(metrics)
        if self._choices is not None:
            self._check_score(self._choices)
            for name, choice in self._choices.items():
                if not isinstance(choice, str):
                    _try_arguments(name, choice, fills)

    def build(
        self,
        default: Sequence[str],
        *,
        make: Callable[[str], tuple[Metric, Score]],
        arguments: Mapping[str, Any],
        example: tuple[Any, Any],
    ) -> tuple[MetricCollection, Score]:
        """Return the metrics, and the score by which runs are compared.

        Args:
            default: Names of the metrics if none are chosen.
            make: Function from a known name to the metric and its score.
            arguments: Values of the arguments that come from the data, for the classes that take them.
            example: Predictions and targets of some examples, to check that each metric of a user scores them.

        Raises:
            InputError: A name is unknown, or a metric does not fit the values.
        """
        choices = self._choices or self._read(default)
        self._check_score(choices)
        made: dict[str, tuple[Metric, Score]] = {}
        for name, choice in choices.items():
            if isinstance(choice, str):
                metric, score = make(choice)
                made[name] = metric, replace(score, name=name)
            else:
                metric = _fit(_create(name, choice, arguments), name=name, example=example, of=self._of)
                made[name] = metric, score_of(name, metric)
        has_own = any(not isinstance(choice, str) for choice in choices.values())
        # States of equal names and first values would be taken for the same.
        collection = MetricCollection({name: metric for name, (metric, _) in made.items()}, compute_groups=not has_own)
        return collection, made[self._score or next(iter(made))][1]

    @property
    def score(self) -> str | None:
        """Name of the metric by which runs are compared: the chosen or first one; None if it depends on the data."""
        return self._score or (next(iter(self._choices)) if self._choices else None)

    def split(self, names: Collection[str]) -> tuple["ChosenMetrics | None", "ChosenMetrics | None"]:
        """Return the metrics with known names of a collection and all others, each None if there are none of them."""
        choices = self._choices or {}
        first = {name: choice for name, choice in choices.items() if isinstance(choice, str) and choice in names}
        others = {name: choice for name, choice in choices.items() if name not in first}
        return self._part(first), self._part(others)

    def _part(self, choices: Mapping[str, MetricChoice]) -> "ChosenMetrics | None":
        score = self._score if self._score in choices else None
        return ChosenMetrics(choices, score, known=self._known, of=self._of) if choices else None

    def _read(self, metrics: Metrics) -> dict[str, MetricChoice]:
        """Return the choices by name."""
        if isinstance(metrics, str) or not metrics:
            first = next(iter(self._known))
            raise InputError(f"task.metrics={metrics!r}: give a list of names, such as task.metrics=[{first}].")
        if isinstance(metrics, Mapping):
            choices: dict[str, MetricChoice] = {name: name if x is None else x for name, x in metrics.items()}
        else:
            choices = {choice if isinstance(choice, str) else _name_of(choice): choice for choice in metrics}
        for name, choice in choices.items():
            if isinstance(choice, str) and choice not in self._known:
                hint = nearest_name(choice, self._known)
                raise InputError(
                    f"task.metrics has {choice!r}, which is no metric of {self._of}. {hint} Classes are given as "
                    f"{_CALLED}."
                )
            if not re.fullmatch(r"\w+", name) or name == "loss":
                raise InputError(f"task.metrics has the name {name!r}: choose another one of letters, digits and _.")
        return choices

    def _check_score(self, choices: Collection[str]) -> None:
        if self._score is not None and self._score not in choices:
            close = [] if self._score in self._known else difflib.get_close_matches(self._score, choices, n=1)
            hint = f"did you mean {close[0]}?" if close else "add it there."
            raise InputError(f"task.score={self._score} is not among task.metrics=[{','.join(choices)}]: {hint}")


class _OfSecondClass(LambdaInputTransformer):
    """A metric of two classes by the probability of the second one."""

    def __init__(self, metric: Metric) -> None:
        super().__init__(metric, transform_pred=_second_probability)

    @property
    def higher_is_better(self) -> bool | None:  # type: ignore[override]
        direction = self.wrapped_metric.higher_is_better
        return direction if direction is None else bool(direction)


def _second_probability(logits: Tensor) -> Tensor:
    return logits.softmax(dim=-1)[..., 1]


def _name_of(choice: object) -> str:
    """Return a name for a metric that was given without one: its class in snake case.

    Example:
        >>> from torchmetrics.classification import MulticlassF1Score
        >>> _name_of(MulticlassF1Score)
        'multiclass_f1_score'
    """
    called = choice.func if isinstance(choice, partial) else choice
    name = getattr(called, "__name__", type(called).__name__)
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def _try_arguments(name: str, choice: Metric | Callable[..., Metric], fills: Collection[str]) -> None:
    """Raise ``InputError`` if a metric cannot be created, whatever the number of classes is."""
    problems = set()
    for number in _TRIED:
        values = {"num_classes": number, "ignore_index": -100, "task": "multiclass"}
        try:
            _create(name, choice, {key: values[key] for key in fills})
        except InputError as error:
            problems.add(str(error))
        else:
            return
    if len(problems) == 1:
        raise InputError(problems.pop())


def _create(name: str, choice: Metric | Callable[..., Metric], arguments: Mapping[str, Any]) -> Metric:
    """Return a metric with the arguments from the data that it takes and that are not given."""
    if isinstance(choice, Metric):
        return choice.clone()
    if not callable(choice):
        raise InputError(f"task.metrics.{name}={shorten(str(choice))}: give a name, or a class as {_CALLED}.")
    called = choice.func if isinstance(choice, partial) else choice
    given = choice.keywords if isinstance(choice, partial) else {}
    shown = getattr(called, "__qualname__", str(called))
    if isinstance(called, type) and not issubclass(called, Metric):
        raise InputError(f"task.metrics.{name} is the class {shown}, which is not a torchmetrics.Metric.")
    taken = inspect.signature(called).parameters
    try:
        metric = choice(**{key: x for key, x in arguments.items() if key in taken and key not in given})
    except (TypeError, ValueError, ImportError) as error:
        raise InputError(f"task.metrics.{name} cannot be used: {shown}: {explain(error).rstrip('.')}.") from error
    if not isinstance(metric, Metric):
        raise InputError(f"task.metrics.{name}: {shown} returns a {type(metric).__name__}, not a torchmetrics.Metric.")
    return metric


def _fit(metric: Metric, *, name: str, example: tuple[Any, Any], of: str) -> Metric:
    """Return a metric that scores predictions, tried on an example."""
    predictions, targets = example
    bases = [f"{base.__module__}.{base.__name__}" for base in type(metric).mro()]
    is_binary = any(re.fullmatch(r"torchmetrics\..*\.Binary\w+", base) for base in bases)
    if is_binary and isinstance(predictions, Tensor) and predictions.shape[1:] == (2,):
        metric = _OfSecondClass(metric)
    trial = metric.clone()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trial.update(predictions, targets)
            value = trial.compute()
    except Exception as error:  # Metrics of users raise errors of any class.
        reason = shorten(f"{type(error).__name__}: {explain(error)}".rstrip("."), most=300)
        raise InputError(f"task.metrics.{name} does not score these {of} ({reason}). Choose another metric.") from error
    if not isinstance(value, Tensor | float | int) or torch.as_tensor(value).numel() != 1:
        raise InputError(f"task.metrics.{name} has several values: one is needed, as with average: macro.")
    return metric


def score_of(name: str, metric: Metric) -> Score:
    """Return the format of a metric: a percentage if its values are from 0 to 1."""
    shown = metric.wrapped_metric if isinstance(metric, _OfSecondClass) else metric
    is_share = (shown.plot_lower_bound, shown.plot_upper_bound) == (0, 1)
    format: dict[str, Any] = {} if is_share else {"scale": 1, "unit": ""}
    return Score(name, **format, higher_is_better=metric.higher_is_better is not False)
