"""Figures of a run: gate values of heads, widths of feed-forward blocks, and both and the metric over the steps."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from gating.report.charts import Chart, charts_of
from gating.report.history import head_values
from gating.report.layers import layer_of, moved_choice, short_names
from gating.report.results import RunResults
from gating.report.rows import KeptNeurons

__all__ = ["gates_figure", "save_pictures"]

# Inches of a row of a map, and of a head in it.
_ROW, _HEAD = 0.36, 0.42
_TOWER_COLORS = ("tab:orange", "tab:green", "tab:purple", "tab:brown")


def gates_figure(
    values: Mapping[str, Sequence[float]],
    *,
    title: str,
    kept: Mapping[str, Sequence[int]] | None = None,
    neurons: Sequence[KeptNeurons] = (),
    spent: Mapping[str, float] | None = None,
    target: float = math.nan,
) -> Figure:
    """Draw gate values of heads as a map, the width of feed-forward blocks as bars, and the cost of each as a bar.

    Args:
        values: Gate values of heads, by the attention block's name.
        title: Title of the map.
        kept: Indices of the heads to outline, by the block's name.
        neurons: The kept neurons of each feed-forward block.
        spent: Share of the cost of all gates that is spent on each kind, if both have gates.
        target: The budget as a share of this cost; NaN without one.
    """
    widths = {"heads": _HEAD * max(map(len, values.values())) + 1.8} if values else {}
    if neurons:
        widths["neurons"] = 4.8 if values else 6.0
    heights = [_ROW * max(len(values), len(neurons)) + 1.3, *([0.9] if spent else [])]
    figure = Figure(figsize=(sum(widths.values()), sum(heights)), layout="constrained")
    panels: Any = [list(widths), *([["cost"] * len(widths)] if spent else [])]
    axes = figure.subplot_mosaic(panels, width_ratios=list(widths.values()), height_ratios=heights)
    if values:
        _draw_head_map(figure, axes["heads"], values, title=title, kept=kept)
    if neurons:
        _draw_widths(axes["neurons"], neurons)
    if spent:
        _draw_cost(axes["cost"], spent, target=target)
    return figure


def _draw_head_map(
    figure: Figure,
    axes: Axes,
    values: Mapping[str, Sequence[float]],
    *,
    title: str,
    kept: Mapping[str, Sequence[int]] | None,
) -> None:
    """Draw gate values in [0, 1] as a heat map with a row for each attention block and a column for each head."""
    num_heads = max(len(row) for row in values.values())
    padded = [[*row, *[float("nan")] * (num_heads - len(row))] for row in values.values()]
    image = axes.imshow(padded, vmin=0, vmax=1, cmap="viridis", aspect="auto")
    # Wrapped to the width of the map, above which it is centered.
    axes.set(title=textwrap.fill(title, width=8 + 4 * num_heads), xlabel="head", ylabel="layer")
    axes.set_xticks(range(num_heads))
    axes.set_yticks(range(len(values)))
    # White lines make heads countable.
    axes.set_xticks([x - 0.5 for x in range(1, num_heads)], minor=True)
    axes.set_yticks([y - 0.5 for y in range(1, len(values))], minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5)
    axes.tick_params(which="minor", length=0)
    for row, name in enumerate(values):
        for head in (kept or {}).get(name, ()):
            axes.add_patch(Rectangle((head - 0.45, row - 0.45), 0.9, 0.9, fill=False, edgecolor="tab:red", linewidth=2))
    figure.colorbar(image, ax=axes, label="gate value")


def _draw_widths(axes: Axes, neurons: Sequence[KeptNeurons]) -> None:
    """Draw a bar for the neurons of each feed-forward block, on a pale bar of those in the dense model."""
    layers = [layer_of(name) for name, _, _ in neurons]
    towers = dict.fromkeys(tower for tower, _ in layers)
    colors = dict(zip(towers, _TOWER_COLORS, strict=False))
    for row, ((_, kept, before), (tower, _)) in enumerate(zip(neurons, layers, strict=True)):
        axes.barh(row, before, color="0.9")
        axes.barh(row, kept, color=colors.get(tower, "tab:gray"))
    total_kept, total = (sum(numbers) for numbers in zip(*((kept, before) for _, kept, before in neurons), strict=True))
    axes.set(title=f"{total_kept:,} of {total:,} neurons", xlabel="neurons", ylabel="layer")
    axes.set_ylim(len(neurons) - 0.5, -0.5)
    names = short_names(list(towers))
    axes.set_yticks(range(len(neurons)), [f"{names[tower]} {layer}".strip() for tower, layer in layers])


def _draw_cost(axes: Axes, spent: Mapping[str, float], *, target: float) -> None:
    """Draw the shares of the cost that is spent on each kind of units, beside each other in one bar."""
    start = 0.0
    for position, (unit, share) in enumerate(spent.items()):
        axes.barh(0, 100 * share, left=start, color=f"C{position}", label=f"{unit} {100 * share:.1f} %")
        start += 100 * share
    axes.barh(0, 100 - start, left=start, color="0.9", label=f"removed {100 - start:.1f} %")
    if not math.isnan(target):
        axes.axvline(100 * target, color="black", linestyle="--", label=f"budget {100 * target:.1f} %")
    axes.set(xlim=(0, 100), xlabel=f"share of the cost of all {' and '.join(spent)} (%)")
    axes.set_yticks([])
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=4, fontsize="small", frameon=False)


def save_pictures(results: RunResults, *, gates_file: Path, history_file: Path) -> None:
    """Save the gates at the end of a search, if any, and the charts of the run; folders are created if needed."""
    history, kept = results.history, results.kept
    for file in (gates_file, history_file):
        file.parent.mkdir(parents=True, exist_ok=True)
    if history.gate_values:
        figure = gates_figure(
            head_values(history, kept, is_folded=True),
            title=f"Gate values; those of outlined heads are folded in. {moved_choice(history, kept)}".rstrip(". "),
            kept={name: heads for name, heads, _ in kept},
            neurons=[] if history.quantity == "heads" else results.neurons,
            spent=history.spent,
        )
        figure.savefig(gates_file, dpi=150)
    _charts_figure(charts_of(results), removed=results.units).savefig(history_file, dpi=150)


# Colors of series by the last word of their style.
_CLASSES = {"score": "tab:orange", "amount": "tab:blue", "loss": "tab:green", "final": "tab:red", "dashed": "tab:gray"}


def _charts_figure(charts: Sequence[Chart], *, removed: str) -> Figure:
    """Draw charts below each other over the same steps."""
    figure = Figure(figsize=(7, 0.5 + 2 * len(charts)), layout="constrained")
    for axes, chart in zip(figure.subplots(len(charts), 1, sharex=True, squeeze=False)[:, 0], charts, strict=True):
        for series in chart.series:
            if series.finite:
                classes = series.style.split()
                line = "--" if "dashed" in classes else "-" if "line" in classes else ""
                marker = "o" if "dots" in classes else ""
                axes.plot(
                    *zip(*series.finite, strict=True),
                    f"{marker}{line}",
                    color=_CLASSES[classes[-1]],
                    label=series.label,
                    markersize=3,
                )
        unit = chart.y.unit.strip()
        axes.set(ylabel=f"{chart.name} ({unit})" if unit else chart.name, ylim=(chart.y.low, chart.y.high))
        if chart.removal:
            axes.axvline(chart.removal, color="black", linewidth=0.8, linestyle=":", label=f"{removed} removed")
        axes.legend(loc="best", fontsize="small")
        axes.grid(alpha=0.3)
    axes.set(xlabel="step", xlim=(0, None))
    return figure
