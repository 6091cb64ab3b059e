"""Pictures and tables of a run."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gating.report.card import CompactReport
from gating.report.history import History, Look
from gating.report.score import Score

__all__ = ["head_map_figure", "kept_heads_table", "print_report", "print_samples", "save_pictures"]


def head_map_figure(
    values: Mapping[str, Sequence[float]], *, title: str, kept: Mapping[str, Sequence[int]] | None = None
) -> Figure:
    """Draw gate values as a map: a row for each attention block, a column for each head.

    Args:
        values: Gate values in [0, 1] by the block's name.
        title: What the map shows.
        kept: Heads to outline, by the block's name.
    """
    num_heads = max(len(row) for row in values.values())
    figure = Figure(figsize=(0.42 * num_heads + 1.8, 0.36 * len(values) + 1.3), layout="constrained")
    axes = figure.subplots()
    padded = [[*row, *[float("nan")] * (num_heads - len(row))] for row in values.values()]
    image = axes.imshow(padded, vmin=0, vmax=1, cmap="viridis", aspect="auto")
    # As wide as the map, for the title is in its middle.
    axes.set(title=textwrap.fill(title, width=8 + 4 * num_heads), xlabel="head", ylabel="layer")
    axes.set_xticks(range(num_heads))
    axes.set_yticks(range(len(values)))
    # White lines between heads, so that they can be counted.
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
    folder: Path,
    history: History,
    *,
    score: Score,
    kept: Sequence[tuple[str, Sequence[int], int]],
    search_steps: int,
) -> None:
    """Draw a run: gates at the end of the search, and open heads and the metric over the steps.

    Args:
        folder: Where the PNG files go.
        history: What was seen of the run.
        score: The metric to show.
        kept: Block name, kept heads by their original numbers, number of heads before.
        search_steps: Step at which heads were removed; 0 if none were.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if history.gate_values:
        kept_heads = {name: heads for name, heads, _ in kept}
        title = "Gate values; those of outlined heads are folded in"
        figure = head_map_figure(_gates_and_folded(history, kept), title=title, kept=kept_heads)
        figure.savefig(folder / "gates.png", dpi=150)
    num_heads = sum(before for _, _, before in kept)
    figure = _history_figure(history.looks, score=score, num_heads=num_heads, search_steps=search_steps)
    figure.savefig(folder / "history.png", dpi=150)


def _gates_and_folded(history: History, kept: Sequence[tuple[str, Sequence[int], int]]) -> dict[str, list[float]]:
    """Return a value for every gated head: what was folded in if it is kept, else that of its gate."""
    shown = dict(history.gate_values[-1])
    for name, heads, num_heads in kept:
        if gates := shown.get(name):
            # A gate of a group stands for several heads.
            shown[name] = [gates[head * len(gates) // num_heads] for head in range(num_heads)]
            for head, value in zip(heads, history.folded.get(name, ()), strict=False):
                shown[name][head] = value
    return shown


def print_report(console: Console, kept: Sequence[tuple[str, Sequence[int], int]], report: CompactReport) -> None:
    """Show a person what a run came to.

    Args:
        console: Where to print.
        kept: Block name, kept heads by their original numbers, number of heads before.
        report: What was measured.
    """
    for table in (kept_heads_table(kept), *_report_tables(report)):
        console.print(table)
    for note in report.notes:
        console.print(note, style="dim")


def print_samples(console: Console, samples: Sequence[Mapping[str, str]]) -> None:
    """Show a person what a model has written.

    Args:
        console: Where to print.
        samples: For each, texts by what they are.
    """
    for sample in samples:
        table = Table(show_header=False, title_justify="left", title="Written by the compact model")
        for name, text in sample.items():
            table.add_row(name, Text(text))
        console.print(table)


def _history_figure(looks: Sequence[Look], *, score: Score, num_heads: int, search_steps: int) -> Figure:
    """Draw open heads and the validation metric over the steps of a run.

    Args:
        looks: What was recorded at each validation.
        score: The metric to show.
        num_heads: Number of heads of the dense model.
        search_steps: Step at which heads were removed; 0 if none were.
    """
    figure = Figure(figsize=(7, 4.6), layout="constrained")
    heads, metric = figure.subplots(2, 1, sharex=True)
    steps = [look.step for look in looks]
    heads.plot(steps, [look.expected_open for look in looks], color="tab:blue", label="expected open")
    heads.plot(steps, [look.open for look in looks], "o", color="tab:blue", label="open")
    heads.plot(steps, [look.target for look in looks], "--", color="tab:gray", label="target")
    heads.set(ylabel="heads", ylim=(0, 1.05 * num_heads))
    metric.plot(
        steps, [score.scale * look.metric for look in looks], "o-", color="tab:orange", label=f"validation {score.name}"
    )
    metric.set(xlabel="step", ylabel=f"{score.name} ({unit})" if (unit := score.unit.strip()) else score.name)
    for axes in (heads, metric):
        if search_steps:
            axes.axvline(search_steps, color="black", linewidth=0.8, linestyle=":", label="heads removed")
        axes.legend(loc="best", fontsize="small")
        axes.grid(alpha=0.3)
    return figure


def kept_heads_table(kept: Sequence[tuple[str, Sequence[int], int]]) -> Table:
    """Show which heads of each attention block are kept.

    Args:
        kept: Block name, kept heads by their original numbers, number of heads before.
    """
    table = Table("attention block", "heads", "kept", title="Heads per layer", title_justify="left")
    for name, heads, before in kept:
        marks = "".join("█" if head in set(heads) else "·" for head in range(before))
        table.add_row(name, marks, f"{len(heads)} of {before}")
    return table


def _report_tables(report: CompactReport) -> list[Table]:
    """Show sizes and speed before and after, and the metric at each stage."""
    sizes = Table("", "before", "after", "ratio", title="The model", title_justify="left")
    for row in report.rows:
        sizes.add_row(row.name, row.before, row.after, row.ratio)
    stages = Table("stage", "validation", "test", title=report.metric_name.capitalize(), title_justify="left")
    for stage in report.metrics:
        stages.add_row(*stage)
    return [sizes, stages]
