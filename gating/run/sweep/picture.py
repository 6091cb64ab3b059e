"""The picture of a choice among runs: score over speed."""

import math
from pathlib import Path

from matplotlib.figure import Figure

from gating.report.figures import score_limits
from gating.run.sweep.choice import Choice
from gating.storage.files import replacing_file

_FRONT, _OTHER, _CHOSEN = "tab:blue", "0.5", "tab:green"
_LABELS = {"speedup": "measured speed-up over the dense model", "work": "work of the dense model over that of the run"}


def write_picture(choice: Choice, path: Path) -> None:
    """Write the picture; the end of the file's name, such as ``.png``, is the format."""
    with replacing_file(path) as new:
        draw_choice(choice).savefig(new, format=path.suffix.lower().removeprefix("."), dpi=120)


def draw_choice(choice: Choice) -> Figure:
    """Draw the validation score of each candidate over its speed, with the front, the dense score and the limit.

    Test scores are shown as small circles; they are no part of the choice.
    """
    figure = Figure(figsize=(7.5, 5.2), layout="constrained")
    axes, score = figure.subplots(), choice.score
    axes.set_xlabel(_LABELS[choice.axis])
    axes.set_ylabel(f"{score.name} {score.unit.strip()}", parse_math=False)
    points = {one: (choice.speed(one), score.scale * one.numbers["validation"]) for one in choice.candidates}
    known = {one: (x, y) for one, (x, y) in points.items() if x > 0 and math.isfinite(y)}
    for one, (x, y) in known.items():
        color = _CHOSEN if one is choice.chosen else _FRONT if one in choice.front else _OTHER
        spread = score.scale * one.numbers["validation_std"]
        axes.errorbar(x, y, yerr=None if math.isnan(spread) else spread, fmt="o", color=color, capsize=3, zorder=3)
        axes.plot(x, score.scale * one.numbers["test"], "o", markersize=4, markerfacecolor="none", color=color)
        # Names at a slant leave room for those of neighbors.
        text = axes.annotate(one.name, (x, y), (5, 5), textcoords="offset points", color=color, size="small")
        text.set(rotation=30, rotation_mode="anchor", parse_math=False)
    axes.plot(*zip(*sorted(points[one] for one in choice.front), strict=True), color=_FRONT, label="Pareto front")
    axes.plot([], [], "o", color="0.3", label="validation: runs are chosen by it")
    axes.plot([], [], "o", markersize=4, markerfacecolor="none", color="0.3", label="test")
    if choice.dense is not None:
        _, dense = points[choice.dense]
        axes.axhline(dense, color="black", linewidth=0.8, linestyle="--", label="dense")
        worst = dense - score.gain(choice.max_drop, 0)
        axes.axhspan(dense, worst, color=_CHOSEN, alpha=0.12, label=f"at most {choice.max_drop:g} worse")
    # Small losses look small, and no score below 0 is suggested where there is none.
    low, high = axes.get_ylim()
    axes.set_ylim(score_limits([low if any(y < 0 for _, y in known.values()) else max(0.0, low), high], score))
    axes.margins(x=0.25)
    axes.grid(alpha=0.3)
    figure.legend(fontsize="small", loc="outside lower center", ncols=3, frameon=False)
    return figure
