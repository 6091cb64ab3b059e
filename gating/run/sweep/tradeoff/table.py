"""The choice among runs as a table, as sentences, and as plain values."""

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gating.report.score import NOT_FINITE, Score
from gating.run.sweep.tradeoff.decision import Candidate, Tradeoff
from gating.storage.files import write_atomically

__all__ = ["as_plain", "drop_text", "explain_choice", "failed_table", "print_choice", "tradeoff_table", "write_numbers"]

_AXES = {"speedup": "speed-up", "work": "less work"}
# Least width of a table that is not printed to a terminal, and of its column of folders.
_WIDTH, _FOLDER = 120, 16


def print_choice(tradeoff: Tradeoff, *, setting: str, failed: Sequence[tuple[str, str]] = ()) -> None:
    """Print the table, the failed jobs, and the recommendation with the name of the setting for the accepted loss."""
    whole, least = _widths(tradeoff)
    # A file or pipe has no width; rich would take 80 columns.
    console = Console() if sys.stdout.isatty() else Console(width=max(_WIDTH, whole))
    fits = least <= console.width
    console.print(tradeoff_table(tradeoff, with_settings=fits))
    for candidate in () if fits else tradeoff.candidates:
        if candidate.runs[0].settings:
            line = f"{candidate.best(tradeoff.score).folder}: {candidate.name}"
            console.print(line, highlight=False, markup=False, soft_wrap=True)
    if failed:
        console.print(failed_table(failed))
    for sentence in explain_choice(tradeoff, setting=setting):
        console.print(sentence, highlight=False, markup=False, soft_wrap=True)


def _widths(tradeoff: Tradeoff) -> tuple[int, int]:
    """Return the width of the table in which nothing is broken, and that in which only long folders are."""
    console = Console(width=10_000)
    whole = console.measure(tradeoff_table(tradeoff)).maximum
    longest = max(len(run.folder) for candidate in tradeoff.candidates for run in candidate.runs)
    return whole, whole - max(0, longest - _FOLDER)


def tradeoff_table(tradeoff: Tradeoff, *, with_settings: bool = True) -> Table:
    """Return a table of the candidates: a star marks the front, an arrow the recommended one, ! warnings."""
    extra = with_settings and any(candidate.runs[0].settings for candidate in tradeoff.candidates)
    table = Table(title=Text(f"{tradeoff.score.name.capitalize()} by speed"), title_justify="left")
    short = _short_speedups(tradeoff)
    numbers = ["heads", "neurons", _AXES[tradeoff.axis], *(["short text"] if short else []), "validation", "test"]
    for column in ("", "budget", *(["settings"] if extra else []), *numbers, "folder"):
        table.add_column(column, overflow="fold", no_wrap=column in (*numbers, "budget", "settings"))
    for candidate in tradeoff.candidates:
        first, others = candidate.runs[0], len(candidate.runs) - 1
        best = candidate.best(tradeoff.score)
        signs = {"→": candidate is tradeoff.chosen, "*": candidate in tradeoff.front, "!": _warnings(candidate)}
        marks = "".join(sign for sign, is_set in signs.items() if is_set)
        texts = [marks, first.budget, *(["\n".join(first.settings)] if extra else [])]
        sizes = [_number(candidate.mean("heads")), _number(candidate.mean("neurons"))]
        scores = [_score(candidate, name, tradeoff.score) for name in ("validation", "test")]
        folder = best.folder + (f" (+{others})" if others else "")
        speeds = [_times(tradeoff.speed(candidate)), *([short[candidate]] if short else [])]
        row = [*texts, *sizes, *speeds, *scores, folder]
        table.add_row(*map(Text, row), style="bold" if candidate is tradeoff.chosen else None)
    if (run := tradeoff.baseline) is not None:
        scores = [tradeoff.score.show(value) for value in (run.baseline_validation, run.baseline_test)]
        texts = ["", run.baseline, *([""] if extra else [])]
        row = [*texts, *["-"] * (4 if short else 3), *scores, "no model"]
        table.add_row(*map(Text, row), style="dim")
    return table


def _short_speedups(tradeoff: Tradeoff) -> dict[Candidate, str]:
    """Return the speed-up of one short text of each candidate as text; empty if none was measured, or work compares."""
    speeds = {
        candidate: 1.0 if candidate.is_dense else candidate.mean("speedup_short") for candidate in tradeoff.candidates
    }
    if tradeoff.axis != "speedup" or all(math.isnan(s) for c, s in speeds.items() if not c.is_dense):
        return {}
    return {candidate: "-" if math.isnan(speed) else f"{speed:.2f}x" for candidate, speed in speeds.items()}


def failed_table(failed: Sequence[tuple[str, str]]) -> Table:
    """Return a table of runs that failed, each with its reason."""
    table = Table("failed", "reason")
    for name, reason in failed:
        table.add_row(Text(name), Text(reason))
    return table


def explain_choice(tradeoff: Tradeoff, *, setting: str) -> list[str]:
    """Return the recommendation as sentences, with the name of the setting for the largest accepted loss."""
    search = [] if tradeoff.search is None else [tradeoff.search]
    if tradeoff.problem is not None:
        return [*search, f"No run is recommended: {tradeoff.problem}", *tradeoff.notes]
    lines = [*search, *_recommendation(tradeoff, f"{setting}={tradeoff.max_drop:g}")]
    if search and tradeoff.dense is None:
        # Trials of a search are compared with each other.
        scored = [candidate for candidate in tradeoff.candidates if candidate.is_scored(tradeoff.score)]
        is_vain = scored and not any(candidate.beats_baseline(tradeoff.score) for candidate in scored)
        lines = [*search, *([_no_candidate(tradeoff, scored)] if is_vain else [])]
    score = tradeoff.score
    if tradeoff.front:
        speed = "speed-up" if tradeoff.axis == "speedup" else "work"
        lines.append(f"*: on the Pareto front of validation {tradeoff.score.name} and {speed}.")
    if any(candidate.num_seeds > 1 for candidate in tradeoff.candidates):
        lines.append("Numbers are means over seeds, scores with their standard deviation.")
    elif len(tradeoff.candidates) > 1:
        lines.append("One seed each: small differences can be chance; seed=0,1,2 shows how large chance is.")
    if tradeoff.baseline is None and tradeoff.chosen is not None:
        lines.append(f"There is no baseline for {score.name}: whether these models have learned is not checked.")
    runs = [run for candidate in tradeoff.candidates for run in candidate.runs]
    return [*lines, *tradeoff.notes, *(f"!: {run.folder}: {warning}" for run in runs for warning in run.warnings)]


def _recommendation(tradeoff: Tradeoff, limit: str) -> list[str]:
    score, dense = tradeoff.score, tradeoff.dense
    scored = [candidate for candidate in tradeoff.candidates if candidate.is_scored(score)]
    if not scored:
        is_missing = all(math.isnan(candidate.mean("validation")) for candidate in tradeoff.candidates)
        which = "one" if is_missing else "a finite one"
        return [f"No run is recommended: runs are chosen by their validation scores, and none has {which}."]
    if dense is None and any(candidate.is_dense for candidate in tradeoff.candidates):
        return ["No run is recommended: the dense run to compare with has no finite validation score."]
    if dense is None:
        return [
            "No run is recommended: there is no dense run to compare with. Train one with the same command and "
            "objective=none instead of a budget, and give its folder and these to head-gating compare."
        ]
    if all(candidate.is_dense for candidate in tradeoff.candidates):
        return ["No run is recommended: there are only dense runs."]
    if tradeoff.chosen is None and tradeoff.closest is None:
        return [_no_candidate(tradeoff, [candidate for candidate in scored if not candidate.is_dense])]
    if tradeoff.chosen is not None:
        tests = [candidate.mean("test") for candidate in (tradeoff.chosen, dense)]
        shown = [score.show(test) for test in tests]
        seen = "" if any(map(math.isnan, tests)) else f"; on test data it has {shown[0]}, the dense run {shown[1]}"
        return [
            f"Recommended: {_compared(tradeoff, tradeoff.chosen, dense)}: the fastest with {limit}."
            f"{_best_seed(tradeoff.chosen, score)}",
            f"Runs are chosen by their validation scores alone{seen}.",
        ]
    assert tradeoff.closest is not None
    better = "" if tradeoff.baseline is None else " and better than the baseline by more than chance"
    return [
        f"No run is recommended: none within {limit} of the dense score is faster than the dense run{better}.",
        f"The closest is {_compared(tradeoff, tradeoff.closest, dense)}.{_best_seed(tradeoff.closest, score)} "
        "Try larger budgets, or longer training.",
    ]


def _no_candidate(tradeoff: Tradeoff, scored: Sequence[Candidate]) -> str:
    """Return the reason for which no run with a budget comes into question."""
    score, baseline = tradeoff.score, tradeoff.baseline
    if not scored or baseline is None:
        lacking = "speed" if scored else "finite validation score"
        return f"No run is recommended: none with a budget has a {lacking}."
    gains = {score.gain(c.mean("validation"), c.mean("baseline_validation")) - c.chance(score): c for c in scored}
    best = gains[max(gains)]
    chance = _decimals(score.scale * best.chance(score))
    dense = tradeoff.dense is not None and not tradeoff.dense.beats_baseline(score)
    return (
        f"No run is recommended: none is better than the baseline, {baseline.baseline} with a validation {score.name} "
        f"of {score.show(baseline.baseline_validation)}, by more than chance. The best, {best.name}, has "
        f"{score.show(best.mean('validation'))}, and a difference of {chance} can be "
        f"chance{'; the dense run is no better than the baseline either' if dense else ''}. Train longer, with other "
        "learning rates, or on more data."
    )


def _compared(tradeoff: Tradeoff, candidate: Candidate, dense: Candidate) -> str:
    """Return a candidate's name, its folder if it is one run, and its speed and validation score against the dense."""
    score, several = tradeoff.score, len(candidate.runs) > 1
    place, mean = ("", "mean ") if several else (f" in {candidate.runs[0].folder},", "")
    gain = "faster" if tradeoff.axis == "speedup" else "less work"
    return (
        f"{candidate.name},{place} {_times(tradeoff.speed(candidate))} {gain}, with a {mean}validation {score.name} of "
        f"{score.show(candidate.mean('validation'))}, {drop_text(tradeoff.drop(candidate), score)} the dense run's "
        f"{score.show(dense.mean('validation'))}"
    )


def _best_seed(candidate: Candidate, score: Score) -> str:
    """Return a sentence on the best of a candidate's runs, after a space; nothing if there is one run."""
    if len(candidate.runs) == 1:
        return ""
    best, several = candidate.best(score), candidate.num_seeds > 1
    number = f"{candidate.num_seeds} seeds" if several else f"{len(candidate.runs)} runs with one seed"
    return f" The best of its {number} is in {best.folder} ({score.show(best.validation)})."


def _warnings(candidate: Candidate) -> list[str]:
    return list(dict.fromkeys(warning for run in candidate.runs for warning in run.warnings))


def drop_text(drop: float, score: Score) -> str:
    """Return a loss of score as text, to be followed by the reference.

    >>> drop_text(0.456, Score("accuracy"))
    '0.46 points below'
    >>> drop_text(2, Score("perplexity", scale=1, unit="", higher_is_better=False))
    '2.00 above'
    >>> drop_text(0.0, Score("accuracy"))
    'equal to'
    """
    size = _decimals(abs(drop))
    if float(size) == 0:
        return "equal to"
    word = "below" if (drop >= 0) == score.higher_is_better else "above"
    return f"{size}{' points' if score.scale == 100 else ''} {word}"


def as_plain(tradeoff: Tradeoff, *, setting: str, failed: Sequence[tuple[str, str]] = ()) -> dict[str, Any]:
    """Return the choice as plain values for JSON; missing numbers are None."""
    rows = []
    for candidate in tradeoff.candidates:
        first = candidate.runs[0]
        means = ("heads", "neurons", "speedup", "speedup_short", "work", "validation", "test")
        row: dict[str, Any] = {
            "budget": first.budget,
            "settings": " ".join(first.settings),
            "dense": candidate.is_dense,
            **{name: _plain(candidate.mean(name)) for name in means},
            **{f"{name}_std": _plain(candidate.spread(name)) for name in ("validation", "test")},
            "drop": _plain(tradeoff.drop(candidate)),
            "on_front": candidate in tradeoff.front,
            "recommended": candidate is tradeoff.chosen,
            "baseline": _plain(candidate.mean("baseline_validation")),
            "beats_baseline": candidate.beats_baseline(tradeoff.score),
            "warnings": _warnings(candidate),
            "folders": [run.folder for run in candidate.runs],
            "seeds": [run.seed for run in candidate.runs],
            "best_folder": candidate.best(tradeoff.score).folder,
        }
        rows.append(row)
    return {
        "metric": tradeoff.score.name,
        "higher_is_better": tradeoff.score.higher_is_better,
        "max_drop": tradeoff.max_drop,
        "compared_by": tradeoff.axis,
        "runs": rows,
        "conclusion": explain_choice(tradeoff, setting=setting),
        "failed": dict(failed),
    }


def write_numbers(tradeoff: Tradeoff, path: Path, *, setting: str, failed: Sequence[tuple[str, str]] = ()) -> None:
    """Write the numbers, and the failed jobs with their reasons, as JSON."""
    plain = as_plain(tradeoff, setting=setting, failed=failed)
    write_atomically(path, json.dumps(plain, indent=2, allow_nan=False) + "\n")


def _score(candidate: Candidate, name: str, score: Score) -> str:
    shown, spread = score.show(candidate.mean(name)), candidate.spread(name)
    return shown if math.isnan(spread) else f"{shown} ± {_decimals(score.scale * spread)}"


def _number(value: float) -> str:
    return "-" if not math.isfinite(value) else f"{value:,.0f}" if abs(value) < 1e15 else f"{value:.4g}"


def _times(speed: float) -> str:
    return "-" if math.isnan(speed) else f"{_decimals(speed)}x"


def _decimals(value: float) -> str:
    """Return a number with two decimals, a large one with an exponent."""
    if not math.isfinite(value):
        return NOT_FINITE
    return f"{value:.2f}" if abs(value) < 1e9 else f"{value:.4g}"


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None
