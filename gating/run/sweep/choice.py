"""The choice among finished runs: the fastest that loses little, as a table, sentences, numbers and a picture."""

import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gating.errors import InputError
from gating.pruning.latency import is_noise
from gating.report.figures import score_limits
from gating.report.score import Score
from gating.run.sweep.results import FinishedRun, conditions_of, names_of
from gating.storage.files import replacing_file

_AXES = {"speedup": "speed-up", "work": "less work"}
_LABELS = {"speedup": "measured speed-up over the dense model", "work": "work of the dense model over that of the run"}
_FRONT, _OTHER, _CHOSEN = "tab:blue", "0.5", "tab:green"
_FORMS = ("{:,.0f}", "{:,.0f}", "{:.2f}x")
# Width of a table that is not printed to a terminal: rich would take 80 columns.
_WIDTH = 1000


@dataclass(frozen=True, eq=False)
class Candidate:
    """Runs that differ in nothing but their seed, the best first; several runs of one seed count as one.

    Attributes:
        conditions: Values that must equal those of the dense runs to be compared with them, by name.
        loss: Mean validation score with the sign by which lower is better; infinity if it is unknown.
        numbers: Means over the seeds, NaN if one is unknown. ``validation_std`` is a standard deviation, ``baseline``
            the score without a model, ``speedup`` 1 within the noise, and ``work`` the share of the dense model's
            multiply-accumulates or, where they are not counted, parameters.
        has_learned: Whether the validation score is better than the baseline, if there is one, by more than chance.
    """

    name: str
    runs: tuple[FinishedRun, ...]
    conditions: Mapping[str, Any]
    loss: float
    numbers: Mapping[str, float]
    has_learned: bool

    @property
    def is_dense(self) -> bool:
        """Whether the runs are dense."""
        return self.runs[0].is_dense


class Choice:
    """The choice among runs by their validation scores; test scores are not looked at.

    Runs that cannot be compared with the dense one, whose score is not finite, or does not beat the baseline by more
    than chance, are never chosen. The axis is ``speedup`` if all were timed alike on one machine, else ``work``; the
    front has the candidates that no other one exceeds in both score and speed. ``max_drop`` is in the shown unit.
    """

    def __init__(self, runs: Sequence[FinishedRun], *, max_drop: float, search: str | None = None) -> None:
        """Raise ``InputError`` if the runs have different tasks or metrics, else choose among them."""
        kinds = {(str(run.settings["task"].get("_target_")), run.numbers["metric"]): run.folder for run in runs}
        if len(kinds) > 1:
            shown = ", ".join(f"{task} with {metric} ({folder})" for (task, metric), folder in kinds.items())
            raise InputError(f"These runs cannot be compared, because they have different tasks or metrics: {shown}.")
        self.score = Score(runs[0].numbers["metric"], **runs[0].numbers.get("score", {}))
        self.max_drop, self.search = max_drop, search
        shapes = [str(run.numbers.get("latency_batch")).partition(" x ")[2] for run in runs]  # without its rows
        machines = {(run.numbers.get("machine"), run.numbers.get("threads")) for run in runs}
        is_timed = len(machines) == len(set(shapes)) == 1
        self.axis = "speedup" if is_timed and all(run.number("speedup") > 0 for run in runs) else "work"
        found, speed = _candidates(runs, self.score), self.speed
        self.candidates = sorted(found, key=lambda one: (one.loss == math.inf, not one.is_dense, speed(one)))
        scored = [one for one in self.candidates if one.loss < math.inf]
        self.dense = min((one for one in scored if one.is_dense), key=lambda one: one.loss, default=None)
        placed = [one for one in scored if speed(one) > 0 and self.difference(one) is None]
        places = [(-one.loss, speed(one)) for one in placed]
        exceeded = [any(p != q and p[0] <= q[0] and p[1] <= q[1] for q in places) for p in places]
        self.front = [one for one, is_exceeded in zip(placed, exceeded, strict=True) if not is_exceeded]
        # Tolerance of binary fractions: a drop of 0.91 - 0.90 is 1.0000000000000009 points.
        within = [one for one in placed if self.drop(one) <= max_drop + 1e-9 and speed(one) > 1]
        learned = [one for one in within if one.has_learned]
        self.chosen = max(learned, key=lambda one: (speed(one), -one.loss), default=None)

    def speed(self, candidate: Candidate) -> float:
        """Return the speed-up, or the dense model's work over that of a candidate; 0 if it is unknown."""
        if candidate.is_dense:
            return 1.0  # Its own measurement of itself differs by noise.
        value = candidate.numbers["speedup"] if self.axis == "speedup" else 1 / candidate.numbers["work"]
        return 0.0 if math.isnan(value) else value

    def drop(self, candidate: Candidate) -> float:
        """Return the loss of validation score against the dense candidate, in the shown unit; NaN without one."""
        return math.nan if self.dense is None else self.score.scale * (candidate.loss - self.dense.loss)

    def difference(self, candidate: Candidate) -> str | None:
        """Return a condition by which a candidate differs from the dense one, or else the first; None without one."""
        reference = self.dense or self.candidates[0]
        own, other = candidate.conditions, reference.conditions
        unlike = next((name for name in {**own, **other} if own.get(name) != other.get(name)), None)
        if unlike and " examples" in unlike:  # Digests tell nothing.
            return f"its {unlike} differ from those of {reference.name}"
        return unlike and f"{unlike}={own.get(unlike)} ({reference.name}: {other.get(unlike)})"


def _loss(score: Score, value: float) -> float:
    """Return a score with the sign by which lower is better; infinity if it is unknown."""
    return math.inf if math.isnan(value) else score.gain(0, value)


def _candidates(runs: Sequence[FinishedRun], score: Score) -> list[Candidate]:
    groups: dict[str, list[FinishedRun]] = {}
    for run in sorted(runs, key=lambda run: _loss(score, run.number(f"val/{score.name}"))):
        groups.setdefault(run.group, []).append(run)
    names = names_of(runs)
    return [
        Candidate(names[group], tuple(alike), conditions_of(alike), *_means(alike, score))
        for group, alike in groups.items()
    ]


def _means(runs: Sequence[FinishedRun], score: Score) -> tuple[float, dict[str, float], bool]:
    """Return the loss and the numbers of a candidate, and whether it has learned."""
    seeds: dict[Any, list[FinishedRun]] = {}
    for run in runs:
        seeds.setdefault(run.settings["seed"], []).append(run)

    def values(name: str) -> list[float]:
        return [mean(run.number(name) for run in alike) for alike in seeds.values()]

    def spread(name: str) -> float:
        if len(seeds) < 2 or not all(map(math.isfinite, numbers := values(name))):
            return math.nan
        # Not statistics.stdev, which overflows with Python 3.10 where the square of a perplexity does.
        center = mean(numbers)
        return math.hypot(*(value - center for value in numbers)) / math.sqrt(len(numbers) - 1)

    sizes = "macs" if mean(values("macs_before")) > 0 else "num_parameters"
    found = {name: mean(values(name)) for name in ("num_heads", "num_neurons", "speedup")}
    errors = values("speedup_error")
    if is_noise(found["speedup"], math.hypot(*errors) / len(errors)):
        found["speedup"] = 1.0
    found["work"] = mean(values(sizes)) / mean(values(f"{sizes}_before"))
    for name, end, split in (("validation", "", "val"), ("test", "_test", "test")):
        stored = f"{split}/{score.name}"
        found |= {name: mean(values(stored)), f"{name}_std": spread(stored)}
        found[f"baseline{end}"] = mean(values(f"baseline/{stored}"))
    for name in _int8_exports(runs):
        found |= {name: mean(values(f"{name}/val/{score.name}")), f"speedup_{name}": mean(values(f"speedup_{name}"))}
    value, baseline, targets = found["validation"], found["baseline"], min(values("num_targets/val"))
    of_labels = score.chance(value, baseline, num_targets=1 if math.isnan(targets) else int(targets))
    of_seeds = 0 if math.isnan(found["validation_std"]) else 2 * found["validation_std"] / math.sqrt(len(seeds))
    has_learned = math.isnan(baseline) or score.gain(value, baseline) > math.hypot(of_labels, of_seeds)
    return _loss(score, value), found, has_learned


def _int8_exports(runs: Iterable[FinishedRun]) -> list[str]:
    """Return the names of the exports with 8-bit weights that runs have made."""
    return sorted({name for run in runs for name in run.settings.get("exports", ()) if str(name).endswith("-int8")})


def explain_choice(choice: Choice) -> list[str]:
    """Return the recommendation as sentences."""
    lines = _recommendation(choice) if choice.search is None else [choice.search]
    for candidate in choice.candidates:
        if (difference := choice.difference(candidate)) is not None:
            lines.append(f"{candidate.name} cannot be compared: {difference}.")
    if choice.front:
        lines.append(f"*: on the Pareto front of validation {choice.score.name} and {_AXES[choice.axis]}.")
    if any(name.endswith("-int8") for one in choice.candidates for name in one.numbers):
        lines.append(
            "Exports with 8-bit weights: validation scores, and speed-ups over the same export of the dense model."
        )
    if choice.axis == "work":
        lines.append("Latencies are missing, or of several machines or lengths, so runs are compared by their work.")
    # Whole warnings are in the log and in the report of each run.
    warned: dict[str, list[str]] = {}
    for run in (run for candidate in choice.candidates for run in candidate.runs):
        for warning in run.numbers.get("warnings", ()):
            warned.setdefault(warning.partition(": ")[0], []).append(run.folder)
    return [*lines, *(f"!: {warning.rstrip('.')} ({', '.join(folders)})." for warning, folders in warned.items())]


def _recommendation(choice: Choice) -> list[str]:
    score, dense, chosen, limit = choice.score, choice.dense, choice.chosen, f"max_drop={choice.max_drop:g}"
    if dense is None:
        return [
            "No run is recommended: there is no dense run with a validation score to compare with. Train one with the "
            "same command and objective=none instead of a budget, and give its folder and these to head-gating compare."
        ]
    if chosen is None:
        shown, baseline = score.show(dense.numbers["baseline"]), dense.runs[0].numbers.get("baseline")
        learned = (
            "" if math.isnan(dense.numbers["baseline"]) else f" and better than {baseline} ({shown}) beyond chance"
        )
        return [f"No run is recommended: none that can be compared with the dense run is faster with {limit}{learned}."]
    number, folder = len(chosen.runs), chosen.runs[0].folder
    change = score.change(chosen.numbers["validation"], dense.numbers["validation"])
    size = f"{abs(change):.2f}{score.points} {'above' if change > 0 else 'below'}" if round(change, 2) else "equal to"
    best = score.show(chosen.runs[0].number(f"val/{score.name}"))
    tests = [score.show(one.numbers["test"]) for one in (chosen, dense)]
    return [
        f"Recommended: {chosen.name},{f' in {folder},' if number == 1 else ''} {choice.speed(chosen):.2f}x "
        f"{'as fast' if choice.axis == 'speedup' else 'less work'}, with a {'mean ' if number > 1 else ''}validation "
        f"{score.name} of {score.show(chosen.numbers['validation'])}, {size} the dense run's "
        f"{score.show(dense.numbers['validation'])}: the fastest with {limit}."
        + (f" The best of its {number} runs is in {folder} ({best})." if number > 1 else ""),
        f"Runs are chosen by their validation scores alone; on test data it has {tests[0]}, the dense run {tests[1]}.",
    ]


def as_json(choice: Choice, *, failed: Mapping[str, str]) -> str:
    """Return the choice, and the failed jobs with their reasons, as JSON; missing numbers are null."""
    rows = [
        {
            "budget": one.name,
            "dense": one.is_dense,
            **{name: value if math.isfinite(value) else None for name, value in one.numbers.items()},
            "on_front": one in choice.front,
            "recommended": one is choice.chosen,
            "folders": [run.folder for run in one.runs],
            "seeds": [run.settings["seed"] for run in one.runs],
        }
        for one in choice.candidates
    ]
    about = {"metric": choice.score.name, "max_drop": choice.max_drop, "compared_by": choice.axis}
    plain = {**about, "runs": rows, "conclusion": explain_choice(choice), "failed": failed}
    return json.dumps(plain, indent=2, allow_nan=False)


def print_choice(choice: Choice) -> None:
    """Print the candidates, with a star at the front and an exclamation mark at warnings, and the recommendation."""
    console = Console() if sys.stdout.isatty() else Console(width=_WIDTH)
    table = Table(title=Text(f"{choice.score.name.capitalize()} by speed"), title_justify="left")
    exports = _int8_exports(run for one in choice.candidates for run in one.runs)
    for column in ("", "budget", "heads", "neurons", _AXES[choice.axis], "validation", "test", *exports, "folder"):
        table.add_column(column, overflow="fold")
    for one in choice.candidates:
        has_warnings = any(run.numbers.get("warnings") for run in one.runs)
        signs = {"→": one is choice.chosen, "*": one in choice.front, "!": has_warnings}
        numbers = [one.numbers["num_heads"], one.numbers["num_neurons"], choice.speed(one) or math.nan]
        shown = [form.format(n).replace("nan", "-") for n, form in zip(numbers, _FORMS, strict=True)]
        if choice.axis == "speedup" and choice.speed(one) == 1 and not one.is_dense:
            shown[-1] = "no difference"
        for name in ("validation", "test"):
            spread = choice.score.scale * one.numbers[f"{name}_std"]
            shown.append(choice.score.show(one.numbers[name]) + ("" if math.isnan(spread) else f" ± {spread:.2f}"))
        shown += [_show_int8(one, name, choice.score) for name in exports]
        others = f" (+{len(one.runs) - 1})" if len(one.runs) > 1 else ""
        row = ["".join(sign for sign, is_set in signs.items() if is_set), one.name, *shown, one.runs[0].folder + others]
        table.add_row(*map(Text, row), style="bold" if one is choice.chosen else None)
    first = choice.candidates[0]
    if not math.isnan(first.numbers["baseline"]):
        scores = [choice.score.show(first.numbers[name]) for name in ("baseline", "baseline_test")]
        row = [
            "",
            str(first.runs[0].numbers.get("baseline")),
            "-",
            "-",
            "-",
            *scores,
            *["-"] * len(exports),
            "no model",
        ]
        table.add_row(*map(Text, row), style="dim")
    console.print(table)
    for sentence in explain_choice(choice):
        console.print(sentence, highlight=False, markup=False, soft_wrap=True)


def _show_int8(candidate: Candidate, name: str, score: Score) -> str:
    """Return the validation score of an export with 8-bit weights, and its speed-up over that of the dense model."""
    value, speedup = (candidate.numbers.get(key, math.nan) for key in (name, f"speedup_{name}"))
    return score.show(value) + ("" if math.isnan(speedup) else f" ({speedup:.2f}x)")


def write_picture(choice: Choice, path: Path) -> None:
    """Write the picture; the end of the file's name, such as ``.png``, is the format."""
    with replacing_file(path) as new:
        draw_choice(choice).savefig(new, format=path.suffix.lower().removeprefix("."), dpi=120)


def draw_choice(choice: Choice) -> Figure:
    """Draw the validation scores over the speed, with the front and the limit; small circles are the test scores."""
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
