"""Figure of the choice among runs: score over speed."""

import math
import re
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.transforms import Bbox

from gating.run.sweep.tradeoff.decision import Candidate, Tradeoff
from gating.storage.files import replacing_file

__all__ = ["FORMATS", "is_figure", "tradeoff_figure", "write_figure"]

# Suffixes of a figure, which name its format.
FORMATS = (".png", ".pdf", ".svg")
# The text is in the metadata of each figure, uncompressed in all formats.
_CREATOR = "head-gating"
_METADATA = re.compile(
    rb"\x89PNG.*tEXtCreator\0%(name)b|%%PDF.*/Creator \(%(name)b\)|"
    rb"<\?xml.*<dc:creator>\s*<cc:Agent>\s*<dc:title>%(name)b</dc:title>" % {b"name": _CREATOR.encode()},
    re.DOTALL,
)

# Larger scores and speeds are not drawn.
_LARGEST = 1e12
_FRONT, _OTHER, _CHOSEN = "tab:blue", "0.5", "tab:green"
_LABELS = {"speedup": "measured speed-up over the dense model", "work": "work of the dense model over that of the run"}
# Width of a character of a name, as a share of the axes, and radius of a point in pixels.
_CHARACTER, _RADIUS = 0.0125, 5.0
# Places of a name beside its point, in points, with its alignment, in order of preference.
_PLACES = ((7, 6, "left"), (7, -14, "left"), (-7, 6, "right"), (-7, -14, "right"))


def write_figure(tradeoff: Tradeoff, path: Path) -> None:
    """Write the figure to a file with one of the suffixes in ``FORMATS``."""
    with replacing_file(path) as new:
        figure = tradeoff_figure(tradeoff)
        figure.savefig(new, format=path.suffix.lower().removeprefix("."), dpi=120, metadata={"Creator": _CREATOR})


def is_figure(path: Path) -> bool:
    """Return whether a file is a figure of :func:`write_figure`, by its metadata."""
    return path.is_file() and _METADATA.match(path.read_bytes()) is not None


def tradeoff_figure(tradeoff: Tradeoff) -> Figure:
    """Draw the validation score of each candidate over its speed, with the front, the dense score and the limit.

    Test scores are shown as small circles; they are no part of the choice.
    """
    figure = Figure(figsize=(7.5, 5.2), layout="constrained")
    axes, score = figure.subplots(), tradeoff.score
    drawn = [candidate for candidate in tradeoff.candidates if _is_drawable(tradeoff, candidate)]
    _set_limits(axes, tradeoff, drawn)
    _draw_limit(axes, tradeoff)
    front = sorted((candidate for candidate in tradeoff.front if candidate in drawn), key=tradeoff.speed)
    steps = [tradeoff.speed(candidate) for candidate in front], [_height(tradeoff, candidate) for candidate in front]
    axes.plot(*steps, color=_FRONT, linewidth=1.2, label="Pareto front", zorder=2)
    for candidate in drawn:
        x, color = tradeoff.speed(candidate), _color(tradeoff, candidate)
        spread = score.scale * candidate.spread("validation")
        error = None if math.isnan(spread) else spread
        axes.errorbar(x, _height(tradeoff, candidate), yerr=error, fmt="o", color=color, capsize=3, zorder=3)
        test = score.scale * candidate.mean("test")
        if abs(test) < _LARGEST:
            axes.plot(x, test, "o", markersize=4, markerfacecolor="none", color=color, zorder=2)
    axes.plot([], [], "o", color="0.3", label="validation: runs are chosen by it")
    axes.plot([], [], "o", markersize=4, markerfacecolor="none", color="0.3", label="test")
    axes.grid(alpha=0.3)
    figure.legend(fontsize="small", loc="outside lower center", ncols=3, frameon=False)
    _draw_names(axes, tradeoff, drawn)
    return figure


def _is_drawable(tradeoff: Tradeoff, candidate: Candidate) -> bool:
    """Return whether a candidate has a score and a speed that an axis can show."""
    return abs(_height(tradeoff, candidate)) < _LARGEST and tradeoff.speed(candidate) < _LARGEST


def _height(tradeoff: Tradeoff, candidate: Candidate) -> float:
    return tradeoff.score.scale * candidate.mean("validation")


def _color(tradeoff: Tradeoff, candidate: Candidate) -> str:
    if candidate is tradeoff.chosen:
        return _CHOSEN
    return _FRONT if candidate in tradeoff.front else _OTHER


def _draw_limit(axes: Axes, tradeoff: Tradeoff) -> None:
    """Draw the dense score as a line, and the accepted loss as a band beside it."""
    low, high = axes.get_ylim()
    baseline = tradeoff.baseline
    if baseline is not None and low < (level := tradeoff.score.scale * baseline.baseline_validation) < high:
        axes.axhline(level, color="0.5", linewidth=0.8, linestyle=":", label="baseline")
    if tradeoff.dense is None or not _is_drawable(tradeoff, tradeoff.dense):
        return
    dense = _height(tradeoff, tradeoff.dense)
    worst = dense - tradeoff.max_drop if tradeoff.score.higher_is_better else dense + tradeoff.max_drop
    axes.axhline(dense, color="black", linewidth=0.8, linestyle="--", label="dense")
    if tradeoff.chosen is not None or tradeoff.closest is not None:
        axes.axhspan(dense, worst, color=_CHOSEN, alpha=0.12, label=f"at most {tradeoff.max_drop:g} worse")


def _set_limits(axes: Axes, tradeoff: Tradeoff, drawn: Sequence[Candidate]) -> None:
    """Set limits that show at least eight times the accepted loss, so that small losses look small."""
    score = tradeoff.score
    values = [score.scale * candidate.mean(name) for candidate in drawn for name in ("validation", "test")]
    known = [value for value in values if abs(value) < _LARGEST] or [0.0]
    middle, least = (max(known) + min(known)) / 2, 8 * tradeoff.max_drop
    span = max(1.3 * (max(known) - min(known)), least, 1e-6)
    low, high = middle - span / 2, middle + span / 2
    beyond = max(0.0, high - 101) if score.unit.strip() == "%" else 0.0
    speeds = [1.0, *(tradeoff.speed(candidate) for candidate in drawn)]
    width = max(speeds) - min(speeds) or 1.0
    margin = 0.05 + _CHARACTER * len(max(drawn, key=tradeoff.speed).name if drawn else "")
    unit = f" ({score.unit.strip()})" if score.unit.strip() else ""
    axes.set(
        xlim=(min(speeds) - 0.06 * width, max(speeds) + margin / (1 - margin) * width),
        ylim=(low - beyond, high - beyond),
    )
    # A $ in a name begins no formula.
    axes.set_xlabel(_LABELS[tradeoff.axis])
    axes.set_ylabel(f"{score.name}{unit}", parse_math=False)


def _draw_names(axes: Axes, tradeoff: Tradeoff, drawn: Sequence[Candidate]) -> None:
    """Write the name of each candidate beside its point, where no point or earlier name is if there is a place."""
    # The layout decides where points are, and how large names are beside them.
    axes.get_figure().draw_without_rendering()  # type: ignore[union-attr]
    points = [(tradeoff.speed(candidate), _height(tradeoff, candidate)) for candidate in drawn]
    places = [axes.transData.transform(point) for point in points]
    taken = [Bbox([place, place]).padded(_RADIUS) for place in places]
    for candidate, point in zip(drawn, points, strict=True):
        text = axes.annotate(
            candidate.name,
            point,
            xytext=(0, 0),
            textcoords="offset points",
            color=_color(tradeoff, candidate),
            fontsize="small",
            fontweight="bold" if candidate is tradeoff.chosen else "normal",
            path_effects=[withStroke(linewidth=3, foreground="white")],
            zorder=4,
            parse_math=False,
        )
        # The first one again, where none is free.
        for x, y, side in (*_PLACES, _PLACES[0]):
            text.set(position=(x, y), horizontalalignment=side)
            box = text.get_window_extent()
            if box.x0 >= axes.bbox.x0 and not box.count_overlaps(taken):
                break
        taken.append(box)
