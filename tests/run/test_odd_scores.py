"""Scores and sizes that are no finite numbers, and models that are no better than a baseline, in the choice."""

import itertools
import json
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from gating.report.score import Score
from gating.run.sweep.tradeoff.decision import Result, decide
from gating.run.sweep.tradeoff.figure import tradeoff_figure
from gating.run.sweep.tradeoff.table import as_plain, explain_choice, tradeoff_table

ACCURACY, PERPLEXITY = Score("accuracy"), Score("perplexity", scale=1, unit="", higher_is_better=False)
SCORES = [ACCURACY, PERPLEXITY, Score("pearson", unit="")]


def result(name: str, validation: float, *, speedup: float = 1.5, seed: int | None = 0, **others) -> Result:
    values = {"speedup": speedup, "work": 0.5, "heads": 4.0, "neurons": 64.0, "test": validation, **others}
    dense = name == "dense"
    return Result(f"{name}-{seed}", name, is_dense=dense, group=name, seed=seed, validation=validation, **values)


def shown(tradeoff) -> str:
    """Draw, write and print a choice; return what is printed."""
    tradeoff_figure(tradeoff).canvas.draw()
    json.dumps(as_plain(tradeoff, setting="--max-drop"), allow_nan=False)
    console = Console(width=300)
    with console.capture() as capture:
        console.print(tradeoff_table(tradeoff))
    return capture.get() + "\n".join(explain_choice(tradeoff, setting="--max-drop"))


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf, 1e308, -1e308])
@pytest.mark.parametrize("score", SCORES)
def test_a_score_that_is_not_finite_is_last_and_never_recommended(odd, score):
    runs = [result("dense", 0.9), result("odd", odd, speedup=3), result("a", 0.9, speedup=1.2)]
    tradeoff = decide([*runs, result("odd", 0.95, seed=1, speedup=3)], score, max_drop=1.0)
    text = shown(tradeoff)
    if math.isfinite(score.scale * odd):
        return
    assert tradeoff.chosen.name == "a"
    assert tradeoff.candidates[-1].name == "odd"
    assert ("not finite" in text) == (not math.isnan(odd))


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("name", ["speedup", "work", "heads", "neurons", "test", "baseline_validation"])
def test_other_odd_numbers_end_no_table(name, score):
    for odd in (math.nan, math.inf, -math.inf, 1e308, -5.0, 0.0, 1e-320):
        runs = [result("dense", 0.9), result("odd", 0.9, **{name: odd}), result("a", 0.9, speedup=1.2)]
        text = shown(decide(runs, score, max_drop=1.0))
        for wrong in ("infx", "inf %", "nanx", "nan", "inf "):
            assert wrong not in text
        assert not re.search(r"\d{30}", text)


odd_numbers = st.one_of(st.floats(), st.floats(0, 1), st.sampled_from([math.nan, math.inf, 0.0, 1.0, 1e308]))
rows = st.lists(
    st.builds(
        result,
        st.sampled_from(["dense", "a", "b", "c $x_$ [/red]"]),
        odd_numbers,
        speedup=odd_numbers,
        seed=st.sampled_from([None, 0, 1]),
        test=odd_numbers,
        work=odd_numbers,
        heads=odd_numbers,
        baseline_validation=odd_numbers,
    ),
    min_size=1,
    max_size=6,
)


@given(rows, st.sampled_from(SCORES), st.floats(0, 100))
def test_no_numbers_end_a_choice_and_only_finite_ones_are_chosen(runs, score, max_drop):
    tradeoff = decide(runs, score, max_drop=max_drop)
    assert json.dumps(as_plain(tradeoff, setting=""), allow_nan=False)
    text = " ".join(explain_choice(tradeoff, setting=""))
    assert "nan" not in text.replace("nano", "")
    assert "infx" not in text
    if tradeoff.chosen is not None:
        assert math.isfinite(tradeoff.speed(tradeoff.chosen))
        assert tradeoff.chosen.beats_baseline(score)
        assert all(math.isfinite(run.validation) for run in tradeoff.chosen.runs)


def majority(name: str, validation: float, *, seed: int = 0, number: int = 30, **others) -> Result:
    baseline = {"baseline": "majority class", "baseline_validation": 19 / 30, "baseline_test": 0.6}
    return result(name, validation, seed=seed, num_targets=number, **baseline, **others)


def test_runs_that_score_the_majority_class_get_no_recommendation():
    runs = [majority(name, 19 / 30, seed=seed) for name in ("dense", "a", "b") for seed in (0, 1, 2)]
    tradeoff = decide(runs, ACCURACY, max_drop=1.0)
    text = shown(tradeoff)
    assert (tradeoff.chosen, tradeoff.closest) == (None, None)
    assert "No run is recommended: none is better than the baseline, majority class with a validation accuracy" in text
    assert "the dense run is no better than the baseline either" in text
    assert "equal to" not in text
    assert "majority class │" in text
    (row,) = [line for line in text.splitlines() if "majority class │" in line]
    assert [cell.strip() for cell in row.split("│")[-4:-2]] == ["63.33 %", "60.00 %"]
    plain = as_plain(tradeoff, setting="")
    assert not any(run["beats_baseline"] for run in plain["runs"])


def test_a_run_that_is_a_little_better_than_the_baseline_on_few_examples_is_not_recommended():
    close = [majority("dense", 0.65), majority("a", 20 / 30)]
    assert decide(close, ACCURACY, max_drop=5.0).chosen is None
    many = [majority("dense", 0.65, number=100_000), majority("a", 20 / 30, number=100_000)]
    assert decide(many, ACCURACY, max_drop=5.0).chosen.name == "a"


def test_the_fastest_that_has_learned_is_recommended():
    runs = [majority("dense", 0.9), majority("few", 19 / 30, speedup=4), majority("half", 0.9, speedup=2)]
    tradeoff = decide(runs, ACCURACY, max_drop=50)
    assert tradeoff.chosen.name == "half"
    tradeoff = decide([*runs[:2], majority("half", 0.85, speedup=2)], ACCURACY, max_drop=1)
    assert "faster than the dense run and better than the baseline by more than chance" in shown(tradeoff)


def test_seeds_that_scatter_make_chance_larger():
    runs = [majority("dense", 0.9, number=10**6)]
    runs += [majority("a", value, seed=seed, number=10**6) for seed, value in enumerate((0.5, 0.8, 0.65))]
    assert decide(runs, ACCURACY, max_drop=50).chosen is None
    # A seed that is repeated tells nothing new.
    (candidate,) = [c for c in decide(runs, ACCURACY, max_drop=50).candidates if c.name == "a"]
    again = [*runs, *itertools.repeat(runs[1], 5)]
    (repeated,) = [c for c in decide(again, ACCURACY, max_drop=50).candidates if c.name == "a"]
    assert repeated.chance(ACCURACY) == candidate.chance(ACCURACY)
    assert repeated.mean("validation") == candidate.mean("validation")


def test_runs_of_one_seed_are_one_seed():
    runs = [result("dense", 0.9), *(result("a", value) for value in (0.9, 0.92, 0.88))]
    tradeoff = decide(runs, ACCURACY, max_drop=1.0)
    assert math.isnan(tradeoff.chosen.spread("validation"))
    text = shown(tradeoff)
    assert "±" not in text
    assert "means over seeds" not in text
    assert "The best of its 3 runs with one seed is in a-0 (92.00 %)" in text


def test_warnings_of_a_run_stay_with_it():
    runs = [result("dense", 0.9), result("a", 0.9, warnings=("The choice of heads is nearly arbitrary: no.",))]
    text = shown(decide(runs, ACCURACY, max_drop=1.0))
    assert "→*!" in text
    assert "!: a-0: The choice of heads is nearly arbitrary: no." in text
    assert as_plain(decide(runs, ACCURACY, max_drop=1.0), setting="")["runs"][1]["warnings"]


def test_a_dense_run_without_a_score_is_named():
    tradeoff = decide([result("dense", math.inf), result("a", 0.9)], ACCURACY, max_drop=1.0)
    assert "the dense run to compare with has no finite validation score" in shown(tradeoff)
    tradeoff = decide([result("dense", 0.9), result("a", math.inf)], ACCURACY, max_drop=1.0)
    assert "none with a budget has a finite validation score" in shown(tradeoff)
    tradeoff = decide([result("dense", math.inf), result("a", math.inf)], ACCURACY, max_drop=1.0)
    assert "and none has a finite one" in shown(tradeoff)


def test_the_best_trial_of_a_search_takes_the_place_of_a_recommendation():
    runs = [majority("a", 0.9), majority("b", 0.95)]
    tradeoff = decide(runs, ACCURACY, max_drop=1.0, search="Best trial: lr=1.")
    assert explain_choice(tradeoff, setting="")[0] == "Best trial: lr=1."
    assert "recommended" not in shown(tradeoff)
    vain = decide([majority("a", 19 / 30)], ACCURACY, max_drop=1.0, search="Best trial: lr=1.")
    assert "none is better than the baseline" in shown(vain)
