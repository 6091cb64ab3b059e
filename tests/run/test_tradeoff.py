"""The choice among runs: front, recommendation, table and figure, from plain numbers."""

import json
import math
from dataclasses import replace
from itertools import combinations
from statistics import mean, stdev

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from gating.report.score import Score
from gating.run.sweep.tradeoff.decision import Result, Tradeoff, decide
from gating.run.sweep.tradeoff.figure import tradeoff_figure
from gating.run.sweep.tradeoff.table import as_plain, explain_choice, failed_table, tradeoff_table
from tests.support.tiny_run import ROOT

ACCURACY, PERPLEXITY = Score("accuracy"), Score("perplexity", scale=1, unit="", higher_is_better=False)


def result(name: str, speedup: float, validation: float, *, test: float = 0.5, seed: int = 0, **others) -> Result:
    values = {"work": 1 / speedup if speedup > 0 else math.nan, "heads": 4.0, "neurons": 64.0, **others}
    numbers = {"speedup": speedup, "validation": validation, "test": test, **values}
    return Result(folder=f"{name}-{seed}", budget=name, is_dense=name == "dense", group=name, seed=seed, **numbers)


def names(candidates) -> list[str]:
    return [candidate.name for candidate in candidates]


def text_of(tradeoff: Tradeoff) -> str:
    return "\n".join(explain_choice(tradeoff, setting="sweep.max_drop"))


def table_of(tradeoff: Tradeoff, *, width: int = 120) -> str:
    console = Console(width=width)
    with console.capture() as capture:
        console.print(tradeoff_table(tradeoff))
    return capture.get()


RUNS = [
    result("dense", 1.0, 0.913, test=0.9),
    result("36 heads", 1.2, 0.911, test=0.8),
    result("18 heads", 1.4, 0.903, test=0.7),
    result("20 heads", 1.35, 0.901, test=0.99),
    result("9 heads", 1.6, 0.88, test=0.99),
]


def test_the_fastest_within_the_limit_is_chosen_and_the_front_has_no_exceeded_run():
    tradeoff = decide(RUNS, ACCURACY, max_drop=1.0)
    assert tradeoff.chosen.name == "18 heads"
    assert names(tradeoff.front) == ["dense", "36 heads", "18 heads", "9 heads"]
    assert tradeoff.drop(tradeoff.chosen) == pytest.approx(1.0)
    assert "Recommended: 18 heads, in 18 heads-0, 1.40x faster" in text_of(tradeoff)
    assert "1.00 points below the dense run's 91.30 %" in text_of(tradeoff)


def test_test_scores_change_nothing_but_what_is_shown():
    other = [result(run.budget, run.speedup, run.validation, test=1 - run.test) for run in RUNS]
    first, second = (decide(runs, ACCURACY, max_drop=1.0) for runs in (RUNS, other))
    assert first.chosen.name == second.chosen.name
    assert names(first.front) == names(second.front)
    assert "on test data it has 70.00 %, the dense run 90.00 %" in text_of(first)


def test_lower_is_better_for_perplexity():
    runs = [result("dense", 1, 20.0), result("a", 1.2, 20.9), result("b", 1.5, 21.2), result("c", 1.1, 19.5)]
    tradeoff = decide(runs, PERPLEXITY, max_drop=1.0)
    assert tradeoff.chosen.name == "a"
    assert names(tradeoff.front) == ["c", "a", "b"]
    assert "0.90 above the dense run's 20.00" in text_of(tradeoff)
    assert "points" not in text_of(tradeoff)


def test_none_within_the_limit_is_said_with_the_closest():
    tradeoff = decide(RUNS, ACCURACY, max_drop=0.1)
    assert tradeoff.chosen is None
    assert "No run is recommended: none within sweep.max_drop=0.1 of the dense score is faster" in text_of(tradeoff)
    assert "The closest is 36 heads, in 36 heads-0" in text_of(tradeoff)


def test_the_closest_of_several_seeds_is_said_with_its_best():
    runs = [result(run.budget, run.speedup, run.validation - 0.01 * seed, seed=seed) for run in RUNS for seed in (0, 1)]
    text = text_of(decide(runs, ACCURACY, max_drop=0.1))
    assert "dense run's 90.80 %. The best of its 2 seeds is in 36 heads-0 (91.10 %). Try larger budgets" in text


def test_equal_scores_are_called_equal():
    text = text_of(decide([result("dense", 1, 0.2517), result("a", 1.2, 0.2517)], ACCURACY, max_drop=1))
    assert "with a validation accuracy of 25.17 %, equal to the dense run's 25.17 %: the fastest" in text


def test_the_page_on_sweeps_has_the_sentence_of_its_table():
    """Scores of 180 examples that have the means and standard deviations of the page's table."""
    page = (ROOT / "docs" / "howto" / "sweeps.md").read_text(encoding="utf-8")
    right = {"dense": (178, 178, 177), "keep 0.5": (179, 179, 177), "keep 0.25": (179, 177, 179)}
    right["keep 0.125"] = (177, 178, 180)
    speeds = {}
    for name, numbers in right.items():
        (row,) = [line for line in page.splitlines() if f"| {name} |" in line]
        *_, speedup, shown, _ = (cell.strip() for cell in row.strip("|").split("|"))
        scores = [number / 1.8 for number in numbers]
        assert shown == f"{mean(scores):.2f} % ± {stdev(scores):.2f}"
        speeds[name] = float(speedup.removesuffix("x"))
    runs = [result(name, speeds[name], n / 180, seed=seed) for name in right for seed, n in enumerate(right[name])]
    folders = [replace(run, folder=f"vit/{job}") for job, run in enumerate(runs)]
    quoted = " ".join(line.removeprefix("> ") for line in page.splitlines() if line.startswith("> "))
    assert quoted == explain_choice(decide(folders, ACCURACY, max_drop=1.0), setting="sweep.max_drop")[0]


def test_a_run_that_is_not_faster_is_not_recommended():
    tradeoff = decide([result("dense", 1, 0.9), result("a", 0.97, 0.95)], ACCURACY, max_drop=1)
    assert tradeoff.chosen is None


def test_a_missing_dense_run_and_how_to_get_one_is_said():
    tradeoff = decide(RUNS[1:], ACCURACY, max_drop=1.0)
    assert tradeoff.chosen is None
    assert tradeoff.front
    assert "there is no dense run" in text_of(tradeoff)
    assert "objective=none" in text_of(tradeoff)


def test_without_validation_scores_nothing_is_chosen():
    runs = [result(run.budget, run.speedup, math.nan, test=run.test) for run in RUNS]
    tradeoff = decide(runs, ACCURACY, max_drop=1.0)
    assert (tradeoff.chosen, tradeoff.front) == (None, ())
    assert "none has one" in text_of(tradeoff)
    tradeoff_figure(tradeoff)


def test_seeds_of_a_budget_are_one_candidate_with_mean_and_spread():
    runs = [result("dense", 1, 0.90 + 0.01 * seed, seed=seed) for seed in (2, 0, 1)]
    runs += [result("a", 1.5, 0.89 + 0.01 * seed, seed=seed) for seed in (0, 1, 2)]
    tradeoff = decide(runs, ACCURACY, max_drop=1.0)
    assert names(tradeoff.candidates) == ["dense", "a"]
    assert tradeoff.chosen.mean("validation") == pytest.approx(0.90)
    assert tradeoff.chosen.spread("validation") == pytest.approx(0.01)
    assert "Recommended: a, 1.50x faster, with a mean validation accuracy of 90.00 %, 1.00 points" in text_of(tradeoff)
    assert "sweep.max_drop=1. The best of its 3 seeds is in a-2 (91.00 %)." in text_of(tradeoff)
    assert "a-2 (+2)" in table_of(tradeoff)
    assert [run["best_folder"] for run in as_plain(tradeoff, setting="")["runs"]] == ["dense-2", "a-2"]
    assert [run.seed for run in tradeoff.dense.runs] == [0, 1, 2]


def test_without_a_latency_of_each_run_they_are_compared_by_work():
    runs = [result("dense", 1, 0.9, work=1.0), result("a", math.nan, 0.9, work=0.5), result("b", 3, 0.9, work=0.8)]
    tradeoff = decide(runs, ACCURACY, max_drop=1.0)
    assert (tradeoff.axis, tradeoff.chosen.name) == ("work", "a")
    assert tradeoff.speed(tradeoff.chosen) == 2
    assert "2.00x less work" in text_of(tradeoff)


def test_incomparable_runs_are_shown_without_a_choice():
    tradeoff = decide(RUNS, ACCURACY, max_drop=1.0, problem="the runs have different data.")
    assert (tradeoff.chosen, tradeoff.front, tradeoff.dense) == (None, (), None)
    assert text_of(tradeoff) == "No run is recommended: the runs have different data."


numbers = st.floats(0.1, 1.0)


@given(st.lists(st.tuples(st.floats(0.5, 4.0), numbers), min_size=1, max_size=8), st.floats(0, 100))
def test_no_qualifying_run_is_faster_than_the_chosen_one_and_each_run_is_reached_by_the_front(pairs, max_drop):
    runs = [result("dense", 1.0, 0.8), *(result(str(number), *pair) for number, pair in enumerate(pairs))]
    tradeoff = decide(runs, ACCURACY, max_drop=max_drop)
    within = [run for run in runs[1:] if 100 * (0.8 - run.validation) <= max_drop and run.speedup > 1]
    assert (tradeoff.chosen is None) <= (not within)
    if tradeoff.chosen is not None:
        assert tradeoff.drop(tradeoff.chosen) <= max_drop + 1e-8
        assert all(run.speedup <= tradeoff.speed(tradeoff.chosen) for run in within)
    for run in runs:
        assert any(
            other.mean("validation") >= run.validation and tradeoff.speed(other) >= run.speedup
            for other in tradeoff.front
        )


def test_the_table_marks_the_front_and_the_recommended_run():
    console = Console(width=100, record=True, file=None)
    tradeoff = decide(RUNS, ACCURACY, max_drop=1.0)
    with console.capture() as capture:
        console.print(tradeoff_table(tradeoff), failed_table([("job 3 (objective.num_heads=[x])", "no such heads")]))
    lines = capture.get().splitlines()
    (row,) = [line for line in lines if "18 heads" in line]
    assert row.split()[1] == "→*"
    assert [cell.strip() for cell in row.split("│")[4:-1]] == ["64", "1.40x", "90.30 %", "70.00 %", "18 heads-0"]
    (row,) = [line for line in lines if "20 heads" in line]
    assert "*" not in row
    assert any("objective.num_heads=[x]" in line and "no such heads" in line for line in lines)


def test_plain_values_are_valid_json_and_name_the_choice():
    tradeoff = decide([*RUNS, result("odd", math.nan, math.nan)], ACCURACY, max_drop=1.0)
    plain = json.loads(json.dumps(as_plain(tradeoff, setting="--max-drop"), allow_nan=False))
    assert [run["budget"] for run in plain["runs"] if run["recommended"]] == [tradeoff.chosen.name]
    assert plain["runs"][-1]["validation"] is None


def test_the_figure_shows_each_run_and_the_limit_without_exaggeration():
    tradeoff = decide(RUNS, ACCURACY, max_drop=1.0)
    (axes,) = tradeoff_figure(tradeoff).axes
    assert {text.get_text() for text in axes.texts} == {run.budget for run in RUNS}
    low, high = axes.get_ylim()
    assert high - low >= 8
    assert all(low < 100 * run.validation < high for run in RUNS)
    assert high <= 101
    assert axes.get_ylabel() == "accuracy (%)"


# A run that is a little faster and better than the one before: its point would be below the first one's name.
CLOSE = [("dense", 1, 0), ("keep 0.5", 1.2, 0.005), ("keep 0.25", 1.24, -0.01), ("keep 0.125", 1.6, 0.02)]


def test_no_name_hides_a_point_or_another_name():
    close = [result(name, speed, 0.913 - drop) for name, speed, drop in CLOSE]
    figure = tradeoff_figure(decide(close, ACCURACY, max_drop=1.0))
    (axes,) = figure.axes
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in axes.texts]
    points = axes.transData.transform([(run.speedup, 100 * run.validation) for run in close])
    assert not any(box.contains(*point) for box in boxes for point in points)
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
