"""Figures of a run: a map of the gate values, and open heads and the metric over the steps."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from gating.report.card import KeptHeads
from gating.report.history import History, Observation
from gating.report.score import Score

__all__ = ["head_map_figure", "save_pictures"]


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
    figure = Figure(figsize=(0.42 * num_heads + 1.8, 0.36 * len(values) + 1.3), layout="constrained")
    axes = figure.subplots()
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
    return figure


def save_pictures(
    history: History,
    *,
    gates_file: Path,
    history_file: Path,
    score: Score,
    kept: Sequence[KeptHeads],
    search_steps: int,
) -> None:
    """Save the figures of a run; their folders are created if needed.

    Args:
        history: Observations of the run.
        gates_file: File for the gates at the end of the search, if there were gates.
        history_file: File for open heads and metric by step.
        score: The metric to show.
        kept: The kept heads of each attention block.
        search_steps: Step at which heads were removed; 0 if none were.
    """
    for file in (gates_file, history_file):
        file.parent.mkdir(parents=True, exist_ok=True)
    if history.gate_values:
        kept_heads = {name: heads for name, heads, _ in kept}
        title = "Gate values; those of outlined heads are folded in"
        figure = head_map_figure(_gates_and_folded(history, kept), title=title, kept=kept_heads)
        figure.savefig(gates_file, dpi=150)
    num_heads = sum(before for _, _, before in kept)
    figure = _history_figure(history.observations, score=score, num_heads=num_heads, search_steps=search_steps)
    figure.savefig(history_file, dpi=150)


def _gates_and_folded(history: History, kept: Sequence[KeptHeads]) -> dict[str, list[float]]:
    """Return a value for every gated head: the folded factor of a kept head, else the gate value."""
    shown = dict(history.gate_values[-1])
    for name, heads, num_heads in kept:
        if gates := shown.get(name):
            # A gate of a group stands for several heads.
            shown[name] = [gates[head * len(gates) // num_heads] for head in range(num_heads)]
            for head, value in zip(heads, history.folded.get(name, ()), strict=False):
                shown[name][head] = value
    return shown


def _history_figure(observations: Sequence[Observation], *, score: Score, num_heads: int, search_steps: int) -> Figure:
    """Draw open heads and the validation metric over the steps of a run.

    Args:
        observations: The run's state at each validation.
        score: The metric to show.
        num_heads: Number of heads of the dense model.
        search_steps: Step at which heads were removed; 0 if none were.
    """
    figure = Figure(figsize=(7, 4.6), layout="constrained")
    heads, metric = figure.subplots(2, 1, sharex=True)
    steps = [seen.step for seen in observations]
    heads.plot(steps, [seen.expected_open for seen in observations], color="tab:blue", label="expected open")
    heads.plot(steps, [seen.open for seen in observations], "o", color="tab:blue", label="open")
    heads.plot(steps, [seen.target for seen in observations], "--", color="tab:gray", label="target")
    heads.set(ylabel="heads", ylim=(0, 1.05 * num_heads))
    values = [score.scale * seen.metric for seen in observations]
    metric.plot(steps, values, "o-", color="tab:orange", label=f"validation {score.name}")
    metric.set(xlabel="step", ylabel=f"{score.name} ({unit})" if (unit := score.unit.strip()) else score.name)
    for axes in (heads, metric):
        if search_steps:
            axes.axvline(search_steps, color="black", linewidth=0.8, linestyle=":", label="heads removed")
        axes.legend(loc="best", fontsize="small")
        axes.grid(alpha=0.3)
    return figure
