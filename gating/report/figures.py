"""Pictures of a run: its gates and widths, and its score, open units and losses over the steps.

Each is drawn once, with matplotlib: for the page, the files beside it, W&B and TensorBoard.
"""

import base64
import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from operator import itemgetter

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from gating.objectives.gate_metrics import metrics_of
from gating.report.results import RunResults
from gating.report.rows import KeptNeurons
from gating.report.score import Score

# Inches of a row of a map, and of a head in it.
_ROW, _HEAD = 0.36, 0.42
# Format and color of a series by its label; others are of validations, a point each.
_STYLES = {
    "training loss": ("-", "tab:green"),
    "expected": ("-", "tab:blue"),
    "open": (".", "tab:cyan"),
    "target": ("--", "tab:gray"),
    "dense reference": ("--", "tab:gray"),
    "dense model": ("D", "black"),
    "final model": ("D", "tab:red"),
}
_STEP = itemgetter(0)
Points = Sequence[tuple[float, float]]


# Names of blocks and metrics may have dollar signs, which would begin a formula.
@rc_context({"text.parse_math": False})
def final_gates(results: RunResults) -> Figure:
    """Draw the gates of heads at the end of a search, the kept ones outlined, and the widths that are left as bars."""
    values, neurons = results.gate_values(), [] if results.history.quantity == "heads" else results.neurons
    widths = {"heads": _HEAD * max(map(len, values.values())) + 1.8} if values else {}
    if neurons:
        widths["neurons"] = 4.8 if values else 6.0
    height = _ROW * max(len(values), len(neurons)) + 1.3
    figure = Figure(figsize=(sum(widths.values()), height), layout="constrained")
    axes = figure.subplot_mosaic([list(widths)], width_ratios=list(widths.values()))
    if values:
        _draw_head_map(figure, axes["heads"], values, kept={name: heads for name, heads, _ in results.kept})
    if neurons:
        _draw_widths(axes["neurons"], neurons)
    return figure


def _draw_head_map(
    figure: Figure, axes: Axes, values: Mapping[str, Sequence[float]], *, kept: Mapping[str, Sequence[int]]
) -> None:
    """Draw gate values in [0, 1] as a heat map with a row for each attention block and a column for each head."""
    num_heads = max(len(row) for row in values.values())
    padded = [[*row, *[math.nan] * (num_heads - len(row))] for row in values.values()]
    # Lines make heads countable; the darker a square, the wider open its gate.
    mesh = axes.pcolormesh(padded, vmin=0, vmax=1, cmap="Blues", edgecolors="0.85", linewidth=1)
    title = "Gate values; those of outlined heads are folded in"
    # Wrapped to the width of the map, above which it is centered.
    axes.set(title=textwrap.fill(title, width=8 + 4 * num_heads), xlabel="head", ylabel="layer")
    axes.set_xticks([head + 0.5 for head in range(num_heads)], map(str, range(num_heads)))
    _label_rows(axes, list(values), at=0.5)
    places = [(head + 0.05, row + 0.05) for row, name in enumerate(values) for head in kept.get(name, ())]
    outlines = [Rectangle(place, 0.9, 0.9) for place in places]
    axes.add_collection(PatchCollection(outlines, facecolor="none", edgecolor="tab:red", linewidth=2))
    figure.colorbar(mesh, ax=axes, label="gate value")


def _draw_widths(axes: Axes, neurons: Sequence[KeptNeurons]) -> None:
    """Draw a bar for the neurons of each feed-forward block, on a pale bar of those in the dense model."""
    names, kept, before = zip(*neurons, strict=True)
    axes.barh(range(len(names)), before, color="0.9")
    axes.barh(range(len(names)), kept, color="tab:orange")
    axes.set(title=f"{sum(kept):,} of {sum(before):,} neurons", xlabel="neurons", ylabel="layer")
    _label_rows(axes, names, at=0)


def _label_rows(axes: Axes, names: Sequence[str], *, at: float) -> None:
    """Label rows from above, the first ``at`` a position, with the numbers in names and the words that not all have."""
    words = [name.split(".") for name in names]
    common = set.intersection(*map(set, words)) - {word for word in words[0] if word.isdigit()}
    labels = [".".join(word for word in one if word not in common) for one in words]
    axes.set_yticks([row + at for row in range(len(names))], labels)
    axes.set_ylim(len(names) - 0.5 + at, at - 0.5)


@rc_context({"text.parse_math": False})
def course_figures(results: RunResults) -> dict[str, Figure]:
    """Draw the score, the open units of a search, and the losses if any were logged, over the steps, by their names."""
    score, total = results.score, results.total_steps
    observations = results.history.observations
    removal = [(results.removed_at, results.validation_at(stage)) for stage in ("search", "removed", "compensated")]
    series: dict[str, Points] = {
        f"validation {score.name}": sorted([*((one.step, one.metric) for one in observations), *removal], key=_STEP),
        "final model": [(total, results.validation_at("compact"))],
        "dense reference": [(step, results.reference.get(f"val/{score.name}", math.nan)) for step in (0, total)],
    }
    figures = {score.name.capitalize(): _chart(results, series, scale=score.scale, unit=score.unit, score=score)}
    if not results.is_dense:
        quantity, (before, after) = results.history.quantity, results.amounts
        name, scale, unit = ("Share of the cost", 100, "%") if quantity == "cost" else (f"Open {quantity}", 1, "")
        series = {"dense model": [(0, before)], "final model": [(total, after)]}
        fields = {"expected": "expected_open", "open": "open", "target": "target"}
        for (label, field), logged in zip(fields.items(), metrics_of(quantity), strict=True):
            seen = [(one.step, getattr(one, field)) for one in observations]
            series[label] = sorted([*seen, *_logged(results, logged)], key=_STEP)
        figures[name] = _chart(results, series, scale=scale, unit=unit)
    # Only a search has a penalty, and then the loss of the task is logged apart.
    losses = _logged(results, "train/task_loss", "train/loss")
    series = {"training loss": losses, "validation loss": _logged(results, "val/loss")}
    if any(series.values()):
        figures["Losses"] = _chart(results, series)
    return figures


def _logged(results: RunResults, *names: str) -> Points:
    """Return steps and values of the log, of the first of some names that a row has."""
    rows = [row for row in results.log if "step" in row and not row.keys().isdisjoint(names)]
    return [(row["step"], next(row[name] for name in names if name in row)) for row in rows]


def _chart(
    results: RunResults,
    series: Mapping[str, Points],
    *,
    scale: float = 1,
    unit: str = "",
    score: Score | None = None,
) -> Figure:
    """Draw series over the steps of a run, without values that are not finite; the axis begins at 0 without a score."""
    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes, drawn = figure.subplots(), []
    for label, points in series.items():
        format, color = _STYLES.get(label, ("o-", "tab:orange"))
        if finite := [(step, scale * value) for step, value in points if math.isfinite(value)]:
            axes.plot(*zip(*finite, strict=True), format, color=color, label=label, markersize=4, clip_on=False)
            drawn += [value for _, value in finite]
    if results.removed_at:
        axes.axvline(results.removed_at, color="black", linewidth=0.8, linestyle=":", label="removal")
    if drawn:
        axes.set_ylim((min(0, *drawn), 1.04 * max(0, *drawn) or 1) if score is None else score_limits(drawn, score))
        # The best place among the curves would take seconds to find.
        figure.legend(loc="outside upper left", ncols=4, fontsize="small", frameon=False)
    axes.set(xlabel="step", xlim=(0, max(results.total_steps, 1)), ylabel=unit.strip())
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.grid(alpha=0.3)
    # Curves may run along these sides.
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def score_limits(values: Sequence[float], score: Score) -> tuple[float, float]:
    """Return limits of an axis on which small differences look small: ten points or a tenth of the score apart.

    They begin at 0 if the lowest value is below half of the highest one.
    """
    low, high = min(values), max(values)
    is_percent = score.unit.strip() == "%"
    missing = max(0.0, (10 if is_percent else 0.1 * abs(high) or 1) - (high - low))
    # Percentages end at 100, and scores without negative values do not begin below 0.
    down = max(missing / 2, high + missing - 100) if is_percent else missing / 2
    down = min(down, low) if low >= 0 else down
    low, high = low - down, high + missing - down
    return 0 if 0 <= low < high / 2 else low, high


def as_source(figure: Figure) -> str:
    """Return a figure as the source of an image, a vector graphic in the address itself."""
    file = io.BytesIO()
    figure.savefig(file, format="svg")
    return f"data:image/svg+xml;base64,{base64.b64encode(file.getvalue()).decode()}"
