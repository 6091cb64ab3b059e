"""The figures of comparisons."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.figure import Figure

# Position, mean, and how far a line reaches below and above it.
Place = tuple[float, float, float, float]


def draw(
    panels: Mapping[tuple[str, int], Mapping[str, Sequence[Place]]],
    path: Path,
    *,
    titles: Callable[[str], str],
    strong: str,
    label: str,
    metric: str,
) -> None:
    """Draw a panel for each data set and number of steps, a line for each method.

    Args:
        panels: By data set and steps, the places of each method.
        path: File of the figure.
        titles: Function from a method to its title.
        strong: Method with a thick line.
        label: Label of the horizontal axis.
        metric: Name of the test metric.
    """
    # A method has one color in all panels; strong colors first, then the pale ones.
    colors = [*colormaps["tab20"].colors[::2], *colormaps["tab20"].colors[1::2]]
    order = list(dict.fromkeys(method for methods in panels.values() for method in methods if method != "none"))
    num_rows = len({steps for _, steps in panels})
    figure = Figure(figsize=(5.2 * -(-len(panels) // num_rows), 4.3 * num_rows), layout="constrained")
    for number, ((data, steps), methods) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(num_rows, -(-len(panels) // num_rows), number)
        for method, places in methods.items():
            at, means, below, above = zip(*sorted(places), strict=True)
            dense = method == "none"
            style: dict[str, Any] = {"linewidth": 2.4, "zorder": 5} if method == strong else {"linewidth": 1.2}
            style["color"] = "black" if dense else colors[order.index(method) % len(colors)]
            axes.errorbar(at, means, yerr=[below, above], marker="o", ms=4, capsize=2, label=titles(method), **style)
        axes.set_title(f"{data}, {steps:,} steps")
        axes.set_xlabel(label)
        axes.set_ylabel(f"test {metric}, %")
        axes.grid(alpha=0.25)
    shown = {name: line for axes in figure.axes for line, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(shown.values(), shown.keys(), fontsize=8, ncols=3, loc="outside lower center")
    figure.savefig(path, dpi=130)
