"""Figure of the choice among runs: score over speed."""

import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gating.report.tradeoff import Tradeoff

__all__ = ["tradeoff_figure"]

_FRONT, _OTHER, _CHOSEN = "tab:blue", "0.55", "tab:green"
_LABELS = {"speedup": "speed-up over the dense model, measured", "work": "dense model's multiply-accumulates over own"}


def tradeoff_figure(tradeoff: Tradeoff) -> Figure:
    """Draw the validation score of each candidate over its speed, with the front, the dense score and the limit.

    Test scores are shown as small circles; they are no part of the choice.

    Args:
        tradeoff: The choice.
    """
    figure = Figure(figsize=(7.5, 4.8), layout="constrained")
    axes, score = figure.subplots(), tradeoff.score
    drawn = [c for c in tradeoff.candidates if not math.isnan(c.mean("validation"))]
    x = {id(c): tradeoff.speed(c) for c in drawn}
    y = {id(c): score.scale * c.mean("validation") for c in drawn}
    front = sorted((c for c in drawn if c in tradeoff.front), key=lambda c: x[id(c)])
    axes.plot(
        [x[id(c)] for c in front], [y[id(c)] for c in front], color=_FRONT, linewidth=1.2, label="front", zorder=2
    )
    for candidate in drawn:
        place = x[id(candidate)], y[id(candidate)]
        color = _CHOSEN if candidate is tradeoff.chosen else _FRONT if candidate in front else _OTHER
        spread = candidate.spread("validation")
        axes.errorbar(
            *place, yerr=None if math.isnan(spread) else score.scale * spread, fmt="o", color=color, capsize=3, zorder=3
        )
        test = score.scale * candidate.mean("test")
        axes.plot(place[0], test, "o", markersize=4, markerfacecolor="none", color=color, zorder=2)
        axes.annotate(
            candidate.name,
            place,
            textcoords="offset points",
            xytext=(6, 6),
            fontsize="small",
            color=color,
            fontweight="bold" if candidate is tradeoff.chosen else None,
        )
    _draw_limit(axes, tradeoff)
    values = [score.scale * c.mean(name) for c in drawn for name in ("validation", "test")]
    axes.set_ylim(_limits([value for value in values if not math.isnan(value)], tradeoff))
    axes.set_xlim(min([1.0, *x.values()]) - 0.05, max([1.0, *x.values()]) * 1.12)
    unit = f" ({score.unit.strip()})" if score.unit.strip() else ""
    axes.set(xlabel=_LABELS[tradeoff.axis], ylabel=f"{score.name}{unit}")
    axes.plot([], [], "o", color="0.3", label="validation, by which runs are chosen")
    axes.plot([], [], "o", markersize=4, markerfacecolor="none", color="0.3", label="test")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", loc="lower left" if score.higher_is_better else "upper left")
    return figure


def _draw_limit(axes: Axes, tradeoff: Tradeoff) -> None:
    """Draw the dense score as a line, and the accepted loss as a band below it."""
    if tradeoff.dense is None:
        return
    dense = tradeoff.score.scale * tradeoff.dense.mean("validation")
    worst = dense - tradeoff.max_drop if tradeoff.score.higher_is_better else dense + tradeoff.max_drop
    axes.axhline(dense, color="black", linewidth=0.8, linestyle="--", label="dense")
    axes.axhspan(dense, worst, color=_CHOSEN, alpha=0.12, label=f"at most {tradeoff.max_drop:g} worse")


def _limits(values: list[float], tradeoff: Tradeoff) -> tuple[float, float]:
    """Return limits of the score's axis that show at least ten times the accepted loss, so that it looks as it is."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    span = max(1.25 * (high - low), 10 * tradeoff.max_drop, 1e-6)
    middle = (low + high) / 2
    return middle - span / 2, middle + span / 2
