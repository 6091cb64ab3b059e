"""Draw the pictures of the pages about concepts, from the code of this package.

    python docs/hooks/pictures.py

They are in docs/images, so that the pages show them on GitHub, too.
"""

from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from gating import BudgetSchedule
from gating.gates import hard_concrete
from gating.objectives import ExpectedCount
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

IMAGES = Path(__file__).resolve().parents[1] / "images"
BLUE, ORANGE, GREEN, GRAY = "#3f51b5", "#e67e22", "#2e8b57", "#9e9e9e"
# The same file from the same numbers.
STYLE = {"svg.hashsalt": "head-gating", "font.size": 10, "axes.spines.top": False, "axes.spines.right": False}
HEADS, KEPT = 72, 18


def hard_concrete_figure() -> Figure:
    """Draw the values that a gate takes, and its expectations, for locations from closed to open."""
    figure = Figure(figsize=(8.6, 3.1), layout="constrained")
    left, right = figure.subplots(1, 2)
    torch.manual_seed(0)
    places, colors = (-2.0, 0.0, 2.0), (ORANGE, GRAY, BLUE)
    for number, (place, color) in enumerate(zip(places, colors, strict=True)):
        values = hard_concrete.sample(torch.full((200_000,), place)).numpy()
        inside = values[(values > 0) & (values < 1)]
        density, edges = np.histogram(inside, bins=40, range=(0, 1))
        left.plot((edges[1:] + edges[:-1]) / 2, density / len(values), color=color, label=f"log α = {place:g}")
        for at, share in ((0.0, (values == 0).mean()), (1.0, (values == 1).mean())):
            # Beside each other outside of the interval.
            x = at + (1 if at else -1) * (0.035 + 0.035 * number)
            left.bar(x, share, width=0.03, color=color)
    left.set(
        title="drawn in training", xlabel="value of the gate", ylabel="probability (40 bins; bars: exactly 0 or 1)"
    )
    left.legend(frameon=False, loc="upper center")
    grid = torch.linspace(-6, 6, 200)
    right.plot(grid.numpy(), hard_concrete.prob_open(grid).numpy(), color=GREEN, label="probability to be open")
    right.plot(grid.numpy(), hard_concrete.deterministic(grid).numpy(), color=BLUE, label="value in evaluation")
    right.set(title="expected", xlabel="log α, the parameter of the gate", ylim=(-0.03, 1.03))
    right.legend(frameon=False, loc="upper left")
    return figure


def budget_figure() -> Figure:
    """Draw how one offset for all gates makes the expected number of open heads equal to the budget."""
    figure = Figure(figsize=(8.6, 3.1), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    generator = torch.Generator().manual_seed(3)
    places = (torch.randn(HEADS, generator=generator) * 2.5 + 3).sort(descending=True).values
    count = ExpectedCount([KEPT], temperature=2 / 3, stretch_limits=(-0.1, 1.1))
    shifted = count(places)
    offset = float(count.offset(places))
    titles = ("by their own log α", f"all log α less {offset:.2f}")
    for axes, locations, title in zip((left, right), (places, shifted), titles, strict=True):
        probabilities = hard_concrete.prob_open(locations).numpy()
        axes.bar(range(HEADS), probabilities, width=0.85, color=[BLUE if p > 0.5 else GRAY for p in probabilities])
        axes.set(title=f"{title}: {probabilities.sum():.0f} heads expected", xlabel="heads, sorted by log α")
    left.set_ylabel("probability to be open")
    return figure


def run_figure() -> Figure:
    """Draw the number of heads over the steps of a run, with its phases."""
    figure = Figure(figsize=(8.6, 3.0), layout="constrained")
    axes = figure.subplots()
    search, begun = 0.75, 0.25
    schedule = BudgetSchedule()
    progress = np.linspace(0, 1, 400)
    expected = [schedule.target(p, total=HEADS, budget=KEPT, start=begun) for p in progress]
    axes.plot(progress * search, expected, color=BLUE, linewidth=2)
    axes.plot([search, 1], [KEPT, KEPT], color=GREEN, linewidth=2)
    parts = [
        (0, begun, "all gates at 1,\nuntil the loss falls"),
        (begun, schedule.end, "descent: gates\ncompete"),
        (schedule.end, 1, "decided:\n0 or 1"),
    ]
    for start, end, text in parts:
        axes.text((start + end) / 2 * search, HEADS + 5, text, ha="center", va="bottom", fontsize=9)
        axes.axvline(end * search, color=GRAY, linewidth=0.8, linestyle=":" if end < 1 else "-")
    axes.text((1 + search) / 2, HEADS + 5, "recovery of the\ncompact model", ha="center", va="bottom", fontsize=9)
    axes.annotate("heads are removed", (search, KEPT), (search + 0.02, KEPT + 22), arrowprops={"arrowstyle": "->"})
    axes.set(xlim=(0, 1), ylim=(0, HEADS + 26), xlabel="share of the steps", ylabel="expected open heads")
    axes.set_yticks([0, KEPT, 36, 54, HEADS])
    return figure


def removal_figure() -> Figure:
    """Draw the matrices of an attention block before and after two of its four heads are removed."""
    figure = Figure(figsize=(8.6, 2.1), layout="constrained")
    axes = figure.subplots()
    colors = [BLUE, ORANGE, GREEN, ORANGE]
    end = _draw_block(axes, 0.0, colors, gates=[0.9, 0, 1, 0], title="with gates")
    axes.annotate("", (end + 1.1, -1), (end + 0.3, -1), arrowprops={"arrowstyle": "-|>", "color": "black"})
    end = _draw_block(axes, end + 1.5, [BLUE, GREEN], gates=None, title="compact")
    axes.set(xlim=(-0.1, end + 0.1), ylim=(-2.15, 1.0), aspect="equal")
    axes.axis("off")
    return figure


def _draw_block(axes: Axes, left: float, colors: list[str], *, gates: list[float] | None, title: str) -> float:
    """Draw rows of queries, keys and values, and columns of the output, a color for each head; return the right end."""
    size, width = 0.5, 1.5
    start, top = left, -1 + len(colors) * size / 2
    faded = [gates is not None and gates[number] == 0 for number in range(len(colors))]
    for name in ("query", "key", "value"):
        for row, color in enumerate(colors):
            alpha = 0.25 if faded[row] else 0.9
            axes.add_patch(Rectangle((left, top - row * size), width, -size * 0.92, color=color, alpha=alpha))
        axes.text(left + width / 2, top + 0.12, name, ha="center")
        left += width + 0.3
    left += 0.6
    for column, color in enumerate(colors):
        x, alpha = left + column * size, 0.25 if faded[column] else 0.9
        axes.add_patch(Rectangle((x, -1 + width / 2), size * 0.92, -width, color=color, alpha=alpha))
        shown = f"{gates[column]:g}" if gates else "× 0.9" if column == 0 else ""
        axes.text(x + size / 2, -1.1 - width / 2, shown, ha="center", va="top", fontsize=9)
    end = left + len(colors) * size
    axes.text((left + end) / 2, -1 + width / 2 + 0.12, "output", ha="center")
    if gates:
        axes.text(left - 0.1, -1.1 - width / 2, "gates:", ha="right", va="top", fontsize=9)
    axes.text((start + end) / 2, 0.65, title, ha="center", fontsize=11, weight="bold")
    return end


PICTURES = {
    "hard_concrete": hard_concrete_figure,
    "expected_count": budget_figure,
    "run": run_figure,
    "removal": removal_figure,
}


def main() -> None:
    """Draw all pictures."""
    with mpl.rc_context(STYLE):
        for name, draw in PICTURES.items():
            draw().savefig(IMAGES / f"{name}.svg", metadata={"Date": None, "Creator": None}, facecolor="white")


if __name__ == "__main__":
    main()
