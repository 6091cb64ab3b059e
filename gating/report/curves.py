"""Curves of a run over its steps: all that was logged, and the scores before and after the removal."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from gating.objectives.gate_metrics import metrics_of
from gating.report.history import History
from gating.report.score import Score
from gating.report.summary import Stage, Summary

__all__ = ["Curves", "curves_of"]

Points = list[tuple[float, float]]

_LOSS, _TASK_LOSS, _VALIDATION_LOSS = "train/loss", "train/task_loss", "val/loss"


@dataclass(frozen=True)
class Curves:
    """Values over the steps of a run, each as pairs of a step and a value.

    Attributes:
        loss: Loss of the task on training batches.
        validation_loss: Loss on validation data.
        score: Score on validation data: at each validation, and at the removal before and after it.
        expected: Expected amount of open units.
        open: Amount of open units.
        target: Amount that the objective aims at.
        fall: Scores right before and right after the removal; NaN where they were not measured.
    """

    loss: Points = field(default_factory=list)
    validation_loss: Points = field(default_factory=list)
    score: Points = field(default_factory=list)
    expected: Points = field(default_factory=list)
    open: Points = field(default_factory=list)
    target: Points = field(default_factory=list)
    fall: tuple[float, float] = (math.nan, math.nan)


def curves_of(
    history: History, summary: Summary, *, score: Score, removal: int, log: Sequence[Mapping[str, float]] = ()
) -> Curves:
    """Return the curves of a run."""
    seen = history.observations
    names = metrics_of(history.quantity)
    observed: list[Points] = [
        [(one.step, getattr(one, kind)) for one in seen] for kind in ("expected_open", "open", "target")
    ]
    expected, num_open, target = (
        _merged(_logged(log, name), points) for name, points in zip(names, observed, strict=True)
    )
    before, after = (
        summary.metrics.get(stage, {}).get(f"val/{score.name}", math.nan) for stage in (Stage.SEARCH, Stage.REMOVED)
    )
    at_removal = [(removal, value) for value in (before, after) if removal and math.isfinite(value)]
    scores = [(one.step, one.metric) for one in seen]
    return Curves(
        loss=_logged(log, _TASK_LOSS if any(_TASK_LOSS in row for row in log) else _LOSS, also=_LOSS),
        validation_loss=_logged(log, _VALIDATION_LOSS),
        score=[*(p for p in scores if p[0] <= removal), *at_removal, *(p for p in scores if p[0] > removal)],
        expected=expected,
        open=num_open,
        target=target,
        fall=(before, after) if removal else (math.nan, math.nan),
    )


def _logged(log: Sequence[Mapping[str, float]], name: str, *, also: str = "") -> Points:
    """Return the values of a name in a log; those of another one in rows without it."""
    found = [
        (row.get("step", math.nan), row[name] if name in row else row[also]) for row in log if {name, also} & set(row)
    ]
    return sorted((step, value) for step, value in found if math.isfinite(step))


def _merged(logged: Points, observed: Points) -> Points:
    """Return logged values and those at validations, by their steps; kept units are logged after a validation."""
    return sorted([*observed, *logged], key=lambda point: point[0])
