"""The choice among runs as a table, as sentences, and as plain values."""

import math
from collections.abc import Sequence
from typing import Any

from rich.table import Table

from gating.report.score import Score
from gating.report.tradeoff import Candidate, Tradeoff

__all__ = ["as_plain", "drop_text", "explain_choice", "tradeoff_table"]

_AXES = {"speedup": "speed-up", "work": "less work"}


def tradeoff_table(tradeoff: Tradeoff, *, failed: Sequence[tuple[str, str]] = ()) -> Table:
    """Return a table with a row for each candidate; a star marks the front, an arrow the recommended one.

    Args:
        tradeoff: The choice.
        failed: Runs that failed, each with its reason, in rows below the others.
    """
    extra = any(candidate.runs[0].settings for candidate in tradeoff.candidates)
    table = Table(title=f"{tradeoff.score.name.capitalize()} by speed", title_justify="left")
    columns = ["", "budget", *(["settings"] if extra else []), "heads", "neurons", _AXES[tradeoff.axis]]
    for column in (*columns, "validation", "test", "folder"):
        table.add_column(column, overflow="fold")
    for candidate in tradeoff.candidates:
        first, marks = candidate.runs[0], "*" if candidate in tradeoff.front else ""
        marks = f"→{marks}" if candidate is tradeoff.chosen else marks
        others = len(candidate.runs) - 1
        table.add_row(
            marks,
            first.budget,
            *([first.settings] if extra else []),
            _number(candidate.mean("heads")),
            _number(candidate.mean("neurons")),
            f"{tradeoff.speed(candidate):.2f}x",
            _score(candidate, "validation", tradeoff.score),
            _score(candidate, "test", tradeoff.score),
            first.folder + (f" (+{others})" if others else ""),
            style="bold" if candidate is tradeoff.chosen else None,
        )
    table.add_section()
    for run, reason in failed:
        table.add_row("failed", run, *[""] * (len(table.columns) - 3), reason, style="dim")
    return table


def explain_choice(tradeoff: Tradeoff, *, setting: str) -> list[str]:
    """Return the recommendation as sentences.

    Args:
        tradeoff: The choice.
        setting: Name of the setting or option for the largest accepted loss.
    """
    if tradeoff.problem is not None:
        return [f"No run is recommended: {tradeoff.problem}", *tradeoff.notes]
    lines = [_recommendation(tradeoff, setting)]
    if tradeoff.front:
        lines.append(
            f"*: no other run has both a better validation {tradeoff.score.name} and "
            + ("a higher speed-up." if tradeoff.axis == "speedup" else "less work.")
        )
    if any(len(candidate.runs) > 1 for candidate in tradeoff.candidates):
        lines.append("Scores and speed-ups are means over seeds, with the standard deviation of the scores.")
    return [*lines, *tradeoff.notes]


def _recommendation(tradeoff: Tradeoff, setting: str) -> str:
    score, dense, limit = tradeoff.score, tradeoff.dense, f"{setting}={tradeoff.max_drop:g}"
    if all(math.isnan(candidate.mean("validation")) for candidate in tradeoff.candidates):
        return "No run is recommended: the choice is by validation scores, and no run has one."
    if dense is None:
        return (
            "No run is recommended: there is no dense run among them. Train one with the same command and "
            "objective=none instead of a budget, and give its folder to head-gating compare, too."
        )
    reference = f"the dense run's {score.show(dense.mean('validation'))}"
    if tradeoff.chosen is not None:
        chosen = tradeoff.chosen
        best = min(chosen.runs, key=lambda run: -run.validation if score.higher_is_better else run.validation)
        of = f", the best of {len(chosen.runs)} seeds" if len(chosen.runs) > 1 else ""
        test = chosen.mean("test"), dense.mean("test")
        seen = (
            "" if any(map(math.isnan, test)) else f" (on test data {score.show(test[0])}, dense {score.show(test[1])})"
        )
        return (
            f"Recommended: {chosen.name}, {best.folder}{of}: {_faster(tradeoff, chosen)}, validation {score.name} "
            f"{score.show(chosen.mean('validation'))}, {drop_text(tradeoff.drop(chosen), score)} {reference}; the fastest "
            f"with {limit}. Chosen by validation data alone{seen}."
        )
    if tradeoff.closest is None:
        return "No run is recommended: there are only dense runs."
    closest = tradeoff.closest
    return (
        f"No run is recommended with {limit}: none is faster than the dense run within it. The closest is "
        f"{closest.name}, {closest.runs[0].folder}: {_faster(tradeoff, closest)}, validation {score.name} "
        f"{drop_text(tradeoff.drop(closest), score)} {reference}. Try larger budgets, longer training or a larger "
        f"{setting}."
    )


def drop_text(drop: float, score: Score) -> str:
    """Return a loss of score as text, to be followed by the reference.

    >>> drop_text(0.456, Score("accuracy"))
    '0.46 points below'
    >>> drop_text(2, Score("perplexity", scale=1, unit="", higher_is_better=False))
    '2.00 above'
    """
    word = "below" if (drop >= 0) == score.higher_is_better else "above"
    return f"{abs(drop):.2f}{' points' if score.scale == 100 else ''} {word}"


def as_plain(tradeoff: Tradeoff, *, setting: str) -> dict[str, Any]:
    """Return the choice as plain values for JSON; missing numbers are None."""
    rows = []
    for candidate in tradeoff.candidates:
        first = candidate.runs[0]
        numbers = {name: _plain(candidate.mean(name)) for name in ("heads", "neurons", "speedup", "work")}
        scores = {name: _plain(candidate.mean(name)) for name in ("validation", "test")}
        spreads = {f"{name}_std": _plain(candidate.spread(name)) for name in scores}
        marks = {
            "drop": _plain(tradeoff.drop(candidate)),
            "on_front": candidate in tradeoff.front,
            "recommended": candidate is tradeoff.chosen,
        }
        texts = {"budget": first.budget, "settings": first.settings, "dense": candidate.is_dense}
        folders = {"folders": [run.folder for run in candidate.runs], "seeds": [run.seed for run in candidate.runs]}
        rows.append(texts | numbers | scores | spreads | marks | folders)
    return {
        "metric": tradeoff.score.name,
        "higher_is_better": tradeoff.score.higher_is_better,
        "max_drop": tradeoff.max_drop,
        "compared_by": tradeoff.axis,
        "runs": rows,
        "conclusion": explain_choice(tradeoff, setting=setting),
    }


def _faster(tradeoff: Tradeoff, candidate: Candidate) -> str:
    speed = tradeoff.speed(candidate)
    return f"{speed:.2f}x faster" if tradeoff.axis == "speedup" else f"{speed:.2f}x less work"


def _score(candidate: Candidate, name: str, score: Score) -> str:
    shown, spread = score.show(candidate.mean(name)), candidate.spread(name)
    return shown if math.isnan(spread) else f"{shown} ± {score.scale * spread:.2f}"


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:,.0f}"


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None
