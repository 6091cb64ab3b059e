"""Figures of a run: gate values of heads, widths of feed-forward blocks, and both and the metric over the steps."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from gating.report.card import KeptHeads, KeptNeurons
from gating.report.curves import Curves, curves_of
from gating.report.history import History, Quantity, head_values
from gating.report.layers import layer_of, moved_choice, short_names
from gating.report.score import Score
from gating.report.summary import Summary

__all__ = ["gates_figure", "head_map_figure", "save_pictures"]

# Inches of a row of a map, and of a head in it.
_ROW, _HEAD = 0.36, 0.42
_COLORS = {"heads": "tab:blue", "neurons": "tab:orange"}
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
        neurons: The kept neurons of each feed-forward block; without any, the figure is the map alone.
        spent: Share of the cost of all gates that is spent on each kind, if both have gates.
        target: The budget as a share of this cost; NaN without one.
    """
    if not neurons:
        return head_map_figure(values, title=title, kept=kept)
    num_heads = max((len(row) for row in values.values()), default=0)
    panels, widths = (["heads", "neurons"], [_HEAD * num_heads + 1.8, 4.8]) if values else (["neurons"], [6.0])
    rows = [(panels, _ROW * max(len(values), len(neurons)) + 1.3)]
    if spent:
        rows.append((["cost"] * len(panels), 0.9))
    heights = [height for _, height in rows]
    figure = Figure(figsize=(sum(widths), sum(heights)), layout="constrained")
    layout: Any = [row for row, _ in rows]
    axes = figure.subplot_mosaic(layout, width_ratios=widths, height_ratios=heights)
    if values:
        _draw_head_map(figure, axes["heads"], values, title=title, kept=kept)
    _draw_widths(axes["neurons"], neurons)
    if spent:
        _draw_cost(axes["cost"], spent, target=target)
    return figure


def head_map_figure(
    values: Mapping[str, Sequence[float]], *, title: str, kept: Mapping[str, Sequence[int]] | None = None
) -> Figure:
    """Draw gate values as a heat map with a row for each attention block and a column for each head.

    Args:
        values: Gate values in [0, 1], by the block's name.
        title: Title of the figure.
        kept: Indices of the heads to outline, by the block's name.
    """
    num_heads = max(len(row) for row in values.values())
    figure = Figure(figsize=(_HEAD * num_heads + 1.8, _ROW * len(values) + 1.3), layout="constrained")
    _draw_head_map(figure, figure.subplots(), values, title=title, kept=kept)
    return figure


def _draw_head_map(
    figure: Figure,
    axes: Axes,
    values: Mapping[str, Sequence[float]],
    *,
    title: str,
    kept: Mapping[str, Sequence[int]] | None,
) -> None:
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
    for unit, share in spent.items():
        axes.barh(0, 100 * share, left=start, color=_COLORS[unit], label=f"{unit} {100 * share:.1f} %")
        start += 100 * share
    axes.barh(0, 100 - start, left=start, color="0.9", label=f"removed {100 - start:.1f} %")
    if not math.isnan(target):
        axes.axvline(100 * target, color="black", linestyle="--", label=f"budget {100 * target:.1f} %")
    axes.set(xlim=(0, 100), xlabel="share of the cost of all heads and neurons (%)")
    axes.set_yticks([])
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=4, fontsize="small", frameon=False)


def save_pictures(
    history: History,
    *,
    gates_file: Path,
    history_file: Path,
    score: Score,
    kept: Sequence[KeptHeads],
    search_steps: int,
    neurons: Sequence[KeptNeurons] = (),
    curves: Curves | None = None,
) -> None:
    """Save the figures of a run; their folders are created if needed.

    Args:
        history: Observations of the run.
        gates_file: File for the gates at the end of the search, if there were gates.
        history_file: File for open units and metric by step.
        score: The metric to show.
        kept: The kept heads of each attention block.
        search_steps: Step at which units were removed; 0 if none were.
        neurons: The kept neurons of each feed-forward block, shown if neurons had gates.
        curves: Curves of the run over its steps; by default of its observations alone.
    """
    for file in (gates_file, history_file):
        file.parent.mkdir(parents=True, exist_ok=True)
    if history.gate_values:
        figure = gates_figure(
            head_values(history, kept, is_folded=True),
            title=f"Gate values; those of outlined heads are folded in. {moved_choice(history, kept)}".rstrip(". "),
            kept={name: heads for name, heads, _ in kept},
            neurons=[] if history.quantity == "heads" else neurons,
            spent=history.spent,
        )
        figure.savefig(gates_file, dpi=150)
    totals = {"heads": sum(before for _, _, before in kept), "neurons": sum(before for _, _, before in neurons)}
    total = totals.get(history.quantity, 100)
    curves = curves or curves_of(history, Summary(), score=score, removal=search_steps)
    figure = _history_figure(curves, history.quantity, score=score, total=total, search_steps=search_steps)
    figure.savefig(history_file, dpi=150)


# Axis label, and factor between an observed and a shown value, of each quantity.
_AXES = {"heads": ("heads", 1), "neurons": ("neurons", 1), "cost": ("share of cost (%)", 100)}


def _history_figure(curves: Curves, quantity: Quantity, *, score: Score, total: float, search_steps: int) -> Figure:
    """Draw open units, the validation metric and the training loss over the steps of a run.

    Args:
        curves: Curves of the run.
        quantity: Quantity of its budget.
        score: The metric to show.
        total: Shown value of the dense model, such as its number of heads.
        search_steps: Step at which units were removed; 0 if none were.
    """
    has_loss = bool(curves.loss)
    figure = Figure(figsize=(7, 6.4 if has_loss else 4.6), layout="constrained")
    units, metric, *others = figure.subplots(3 if has_loss else 2, 1, sharex=True)
    label, scale = _AXES[quantity]
    units.plot(*_columns(curves.expected, scale), color="tab:blue", label="expected open")
    units.plot(*_columns(curves.open, scale), "o", color="tab:blue", markersize=3, label="open")
    units.plot(*_columns(curves.target, scale), "--", color="tab:gray", label="target")
    units.set(ylabel=label, ylim=(0, 1.05 * total))
    metric.plot(*_columns(curves.score, score.scale), "o-", color="tab:orange", label=f"validation {score.name}")
    metric.set(ylabel=f"{score.name} ({unit})" if (unit := score.unit.strip()) else score.name)
    for axes in others:
        axes.plot(*_columns(curves.loss, 1), color="tab:green", linewidth=1, label="training loss")
        axes.set(ylabel="loss")
    removed = "heads and neurons" if quantity == "cost" else quantity
    for axes in (units, metric, *others):
        if search_steps:
            axes.axvline(search_steps, color="black", linewidth=0.8, linestyle=":", label=f"{removed} removed")
        axes.legend(loc="best", fontsize="small")
        axes.grid(alpha=0.3)
    axes.set(xlabel="step", xlim=(0, None))
    return figure


def _columns(points: Sequence[tuple[float, float]], scale: float) -> tuple[list[float], list[float]]:
    return [step for step, _ in points], [scale * value for _, value in points]
