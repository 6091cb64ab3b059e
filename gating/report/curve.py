"""The curve of sizes of a model, trained or not: its points, the recommended one, the table, the picture, the page."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure
from rich.table import Table

from gating.report.figures import as_source, score_limits
from gating.report.score import Score
from gating.storage.files import replacing_file, write_atomically

_POINT, _CHOSEN = "tab:blue", "tab:green"


@dataclass(frozen=True)
class CurvePoint:
    """One size of a model: the share of the cost that it keeps, its units, its validation score and its speed.

    It was asked for as a share to ``keep`` or as a ``speedup``, the target. ``speedup`` is the time of the dense model
    over that of this one, and ``error`` its relative standard error. ``seconds`` are those of making and measuring it.
    ``int8`` is the score with 8-bit weights, and ``int8_speedup`` the time of the dense model with 8-bit weights over
    that of this one; None if they were not measured.
    """

    asked: str
    target: float
    keep: float
    heads: int
    neurons: int
    parameters: int
    value: float
    speedup: float
    error: float
    seconds: float
    int8: float | None = None
    int8_speedup: float | None = None


@dataclass
class Curve:
    """Sizes of a model, made by a removal and a compensation, without training or with a recovery.

    Attributes:
        title: Name of the model and of the data.
        score: Metric of the sizes.
        dense: The dense model; its share is 1.
        points: The sizes so far, the largest first.
        max_drop: Largest accepted loss of the score, in the unit that is shown.
        commands: Commands that make the recommended size, by what they do; ``{keep}`` is its share.
        notes: Sentences on what was measured.
        is_trained: Whether each size was trained after its removal.
    """

    title: str
    score: Score
    dense: CurvePoint
    points: list[CurvePoint] = field(default_factory=list)
    max_drop: float = 1.0
    commands: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()
    is_trained: bool = False

    @property
    def how(self) -> str:
        """Words for the making of the sizes."""
        return "after a recovery of each" if self.is_trained else "without training"

    def drop(self, point: CurvePoint) -> float:
        """Return the loss of score against the dense model, in the shown unit."""
        return -self.score.gain(self.score.scale * point.value, self.score.scale * self.dense.value)

    @property
    def chosen(self) -> CurvePoint | None:
        """The smallest size within ``max_drop``; None without one."""
        within = [point for point in self.points if self.drop(point) <= self.max_drop + 1e-9]
        return min(within, key=lambda point: point.keep, default=None)

    def conclusion(self) -> list[str]:
        """Return the recommendation and its commands as lines."""
        point, limit = self.chosen, f"{self.max_drop:g}{self.score.points}"
        if point is None:
            return [f"No size loses at most {limit} of {self.score.name} {self.how}: try larger ones, or train."]
        change = self.score.change(point.value, self.dense.value)
        first = (
            f"Recommended: {point.keep:g} of the cost, {point.speedup:.2f}x as fast, with a validation "
            f"{self.score.name} of {self.score.show(point.value)} ({change:+.2f}{self.score.points}): the smallest "
            f"that loses at most {limit}."
        )
        return [first, *(f"{name}: {text.format(keep=f'{point.keep:g}')}" for name, text in self.commands.items())]

    def rows(self) -> list[list[str]]:
        """Return the dense model and the sizes as cells of a table, with an arrow at the recommended one."""
        return [
            [
                "→" if point is self.chosen else "",
                "dense" if point is self.dense else f"{point.keep:g}",
                f"{point.heads:,}",
                f"{point.neurons:,}",
                f"{point.parameters:,}",
                self.score.show(point.value),
                "" if point is self.dense else f"{self.score.change(point.value, self.dense.value):+.2f}",
                "" if point is self.dense else f"{point.speedup:.2f}x",
                "" if point is self.dense else f"{point.seconds:.0f} s",
                *self._cells_of_int8(point),
            ]
            for point in (self.dense, *self.points)
        ]

    @property
    def _has_int8(self) -> bool:
        return any(point.int8 is not None for point in self.points)

    def _cells_of_int8(self, point: CurvePoint) -> list[str]:
        """Return score and speed-up with 8-bit weights, if the curve has them."""
        score = "" if point.int8 is None else self.score.show(point.int8)
        speedup = "" if point.int8_speedup is None or point is self.dense else f"{point.int8_speedup:.2f}x"
        return [score, speedup] if self._has_int8 else []

    def table(self) -> Table:
        """Return the table for a terminal."""
        table = Table(title=f"{self.title}: {self.score.name} by size, {self.how}", title_justify="left")
        for name in self.columns():
            table.add_column(name, overflow="fold")
        for row in self.rows():
            table.add_row(*row, style="bold" if row[0] else None)
        return table

    def columns(self) -> list[str]:
        """Return the names of the columns."""
        names = ["", "cost kept", "heads", "neurons", "parameters", self.score.name, "change", "speed-up", "made in"]
        return [*names, f"{self.score.name}, int8", "speed-up, both int8"] if self._has_int8 else names

    def draw(self) -> Figure:
        """Draw the score over the speed-up, with the dense score and the accepted loss."""
        figure = Figure(figsize=(7.5, 4.5), layout="constrained")
        axes, scale = figure.subplots(), self.score.scale
        points = [point for point in (self.dense, *self.points) if math.isfinite(point.value)]
        line = [(point.speedup, scale * point.value) for point in points]
        label = "smaller models, with the share of the cost that stays"
        axes.plot(*zip(*line, strict=True), "o-", color=_POINT, zorder=2, label=label)
        for point in points:
            color = _CHOSEN if point is self.chosen else _POINT
            name = "dense" if point is self.dense else f"{100 * point.keep:.0f} %"
            place = (point.speedup, scale * point.value)
            axes.plot(*place, "o", color=color, markersize=9 if point is self.chosen else 5, zorder=3)
            axes.annotate(name, place, (5, 7), textcoords="offset points", color=color, size="small")
        level = scale * self.dense.value
        axes.axhline(level, color="black", linewidth=0.8, linestyle="--", label="dense model")
        worst = level - self.score.gain(self.max_drop, 0)
        axes.axhspan(
            level, worst, color=_CHOSEN, alpha=0.12, label=f"at most {self.max_drop:g}{self.score.points} worse"
        )
        axes.set(
            xlabel="times as fast as the dense model", ylabel=f"validation {self.score.name} {self.score.unit.strip()}"
        )
        axes.set_ylim(score_limits([scale * point.value for point in points] + [worst], self.score))
        axes.margins(x=0.12)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        figure.legend(fontsize="small", loc="outside lower center", ncols=3, frameon=False)
        return figure

    def as_json(self) -> dict[str, Any]:
        """Return the numbers as plain values."""
        named = {name: asdict(value) for name, value in (("score", self.score), ("dense", self.dense))}
        recommended = None if self.chosen is None else self.chosen.keep
        points = [asdict(point) for point in self.points]
        return {**named, "points": points, "max_drop": self.max_drop, "recommended": recommended}

    def write(self, folder: Path, *, about: Mapping[str, Any]) -> None:
        """Write ``curve.json``, with the identity of the curve, ``curve.png`` and ``index.html``."""
        write_atomically(folder / "curve.json", json.dumps({"about": about, **self.as_json()}, indent=1) + "\n")
        figure = self.draw()
        with replacing_file(folder / "curve.png") as new:
            figure.savefig(new, format="png", dpi=150)
        environment = Environment(loader=PackageLoader("gating", "report"), autoescape=True, undefined=StrictUndefined)
        page = environment.get_template("curve.html.j2").render(curve=self, picture=as_source(figure))
        write_atomically(folder / "index.html", page)
