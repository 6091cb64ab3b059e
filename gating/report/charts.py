"""Charts of a run over its steps, which the page and the figures draw."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter

from matplotlib.ticker import MaxNLocator

from gating.objectives.gate_metrics import metrics_of
from gating.report.results import RunResults
from gating.report.score import Score

__all__ = ["Axis", "Chart", "Series", "charts_of", "score_axis"]

# Series of the open units: name, style, and attribute of an observation.
_AMOUNTS = (
    ("expected", "line amount", "expected_open"),
    ("open", "dots amount", "open"),
    ("target", "dashed", "target"),
)
# More points than a chart has pixels across would only make the page large.
_MOST_POINTS = 2000


@dataclass(frozen=True)
class Axis:
    """A linear axis.

    Attributes:
        low: Value at its start.
        high: Value at its end.
        ticks: Values with a label.
        unit: Text after a label.
    """

    low: float
    high: float
    ticks: tuple[float, ...]
    unit: str = ""

    def place(self, value: float, start: float, end: float) -> float:
        """Return the coordinate of a value on an axis drawn from ``start`` to ``end``."""
        return round(start + (end - start) * (value - self.low) / (self.high - self.low), 2)

    def label(self, tick: float) -> str:
        """Return the text of a tick."""
        return f"{tick:,.6g}{self.unit}"


@dataclass(frozen=True)
class Series:
    """Values over the steps of a run.

    Attributes:
        label: Name in the legend.
        style: Class of the style sheet: ``line``, ``dots`` or ``dashed``, and the class of a color.
        points: Step and value of each point; those that are not finite are left out.
    """

    label: str
    style: str
    points: Sequence[tuple[float, float]]

    @property
    def finite(self) -> list[tuple[float, float]]:
        """The points that can be drawn; of very many, some at equal distances and the last."""
        points = [(x, y) for x, y in self.points if math.isfinite(y)]
        every = -(-len(points) // _MOST_POINTS) or 1
        return points[::every] + (points[-1:] if len(points) % every != 1 and every > 1 else [])


@dataclass(frozen=True)
class Chart:
    """A chart of several series over the steps of a run.

    Attributes:
        name: What it shows, without a unit.
        caption: How it is read.
        x: Axis of the steps.
        y: Axis of the values.
        series: Its series; those without finite points are left out.
        removal: Step of the removal; 0 without one.
    """

    name: str
    caption: str
    x: Axis
    y: Axis
    series: Sequence[Series]
    removal: int = 0

    @property
    def title(self) -> str:
        """The title of the chart."""
        return f"{self.name} over the steps"


def charts_of(results: RunResults) -> list[Chart]:
    """Return the charts of a run: its score, the open units of a search, and the losses if any were logged."""
    charts = [_score_chart(results)]
    if not results.is_dense:
        charts.append(_amount_chart(results))
    # Only a search has a penalty, and then the loss of the task is logged apart.
    losses = _points(results, "train/task_loss", "train/loss")
    series = [
        Series("training", "line loss", losses),
        Series("validation", "line dots score", _points(results, "val/loss")),
    ]
    if values := [value for one in series for _, value in one.finite]:
        caption = f"All {len(losses):,} logged losses of training batches, without the penalty of the gates."
        x, y = _step_axis(results.total_steps), _axis(min(0.0, *values), max(values), "")
        charts.append(Chart("Loss", caption, x, y, series, results.search_steps))
    return charts


def _points(results: RunResults, *names: str, seen: Sequence[tuple[float, float]] = ()) -> list[tuple[float, float]]:
    """Return steps and values, the logged ones after those that were seen at a validation of the same step.

    Args:
        results: The results of a run with its log.
        names: Names in the log; the first that a row has is taken.
        seen: Points that are not in the log.
    """
    logged = [
        (row["step"], next(row[name] for name in names if name in row))
        for row in results.log
        if "step" in row and not row.keys().isdisjoint(names)
    ]
    return sorted([*seen, *logged], key=itemgetter(0))


def _score_chart(results: RunResults) -> Chart:
    score, x = results.score, _step_axis(results.total_steps)
    final, dense = (
        score.scale * metrics.get(f"val/{score.name}", math.nan) for metrics in (results.final, results.reference)
    )
    seen = [(one.step, one.metric) for one in results.history.observations]
    fall = [(results.search_steps, value) for value in results.fall if math.isfinite(value)]
    points = [(step, score.scale * value) for step, value in _points(results, seen=[*seen, *fall])]
    series = [
        Series(f"validation {score.name}", "line dots score", points),
        Series("final model", "dots final", [(results.total_steps, final)]),
        Series("dense reference", "dashed", [(x.low, dense), (x.high, dense)]),
    ]
    y = score_axis([value for one in series for _, value in one.points], score)
    caption = "A curve that still moves at its end asks for more steps." if results.is_dense else _fall(results)
    if y.low:
        caption += f" The vertical axis starts at {y.label(y.low)}, not at 0."
    if missing := sum(not math.isfinite(value) for _, value in points):
        caption += f" {missing} of {len(points)} validations have no finite value."
    return Chart(score.name.capitalize(), caption, x, y, series, results.search_steps)


def _fall(results: RunResults) -> str:
    """Return a sentence on the change of the score at the removal, with advice for a large one."""
    score, (before, after) = results.score, results.fall
    if not (math.isfinite(before) and math.isfinite(after)):
        return "A fall at the removal that the recovery does not make up for asks for a larger budget or more recovery."
    final = score.show(results.final.get(f"val/{score.name}", math.nan))
    shown = f"Before the removal {score.show(before)}, right after it {score.show(after)}, at the end {final}."
    if score.show(before) == score.show(after):
        return f"{shown} The gates were closed when their units were removed, so that nothing changed then."
    return f"{shown} A fall that the recovery does not make up for asks for a larger budget or more recovery."


def _amount_chart(results: RunResults) -> Chart:
    """Return the chart of open heads or neurons, or their share of cost."""
    quantity, (total, final) = results.history.quantity, results.amounts
    name, scale, unit = ("Share of the cost", 100, " %") if quantity == "cost" else (f"Open {quantity}", 1, "")
    series = []
    for (label, style, attribute), logged in zip(_AMOUNTS, metrics_of(quantity), strict=True):
        seen = [(one.step, getattr(one, attribute)) for one in results.history.observations]
        points = _points(results, logged, seen=seen)
        series.append(Series(label, style, [(step, scale * value) for step, value in points]))
    series.append(Series("final model", "dots final", [(results.total_steps, scale * final)]))
    caption = (
        "The line follows the target as gates close; dots apart from the line are gates that were still undecided, "
        "and a longer search would decide them."
    )
    high = max([scale * total, *(value for one in series for _, value in one.finite)])
    return Chart(name, caption, _step_axis(results.total_steps), _axis(0, high, unit), series, results.search_steps)


def _step_axis(steps: int) -> Axis:
    high = max(steps, 1)
    ticks = MaxNLocator(nbins=6, steps=[1, 2, 5, 10], integer=True).tick_values(0, high)
    return Axis(0, high, tuple(float(tick) for tick in ticks if 0 <= tick <= high))


def score_axis(values: Sequence[float], score: Score) -> Axis:
    """Return an axis on which small differences of a score look small.

    It spans ten points of a percentage, or a tenth of another score, at least, and starts at 0 if the lowest value is
    below half of the highest one.
    """
    finite = [value for value in values if math.isfinite(value)] or [0.0]
    low, high = min(finite), max(finite)
    is_percent = score.unit.strip() == "%"
    missing = (10 if is_percent else 0.1 * abs(high) or 1) - (high - low)
    if missing > 0:
        low, high = low - missing / 2, high + missing / 2
        # Percentages end at 100, and scores without negative values do not begin below 0.
        shift = min(0.0, 100 - high) if is_percent else 0.0
        shift = max(shift, -low) if low < 0 <= min(finite) else shift
        low, high = low + shift, high + shift
    return _axis(0 if 0 <= low < high / 2 else low, high, score.unit)


def _axis(low: float, high: float, unit: str) -> Axis:
    # 100 is a multiple of each of these steps.
    ticks = MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    return Axis(float(ticks[0]), float(ticks[-1]), tuple(float(tick) for tick in ticks), unit)
