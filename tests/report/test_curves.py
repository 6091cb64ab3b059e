"""Curves of a run have all that was logged, and the scores before and after the removal."""

import pytest

from gating.report.charts import charts_of
from gating.report.history import History, Observation
from gating.report.layers import moved_choice
from gating.report.results import RunResults
from gating.report.score import Score
from gating.report.summary import Stage, Summary

ACCURACY = Score("accuracy")
LOG = [
    {"step": 0.0, "train/loss": 2.5, "train/task_loss": 2.0, "gates/open": 12.0, "gates/expected_open": 12.0},
    {"step": 9.0, "train/loss": 1.5, "train/task_loss": 1.0, "gates/open": 9.0, "gates/expected_open": 8.5},
    {"step": 10.0, "val/loss": 1.1, "val/accuracy": 0.8},
    {"step": 19.0, "gates/open": 4.0, "gates/expected_open": 4.0},
    {"step": 29.0, "train/loss": 0.5},
    {"lr": 0.1},
]
HISTORY = History([Observation(10, 0.8, 8.0, 8, 8.0), Observation(30, 0.9, 4.0, 4, 4.0)])


def summary(before: float, after: float) -> Summary:
    one = Summary()
    one.add_metrics(Stage.SEARCH, "end of search", "validation", {"accuracy": before})
    one.add_metrics(Stage.REMOVED, "after removal", "validation", {"accuracy": after})
    return one


def results(before: float = 0.85, after: float = 0.7) -> RunResults:
    measured = summary(before, after)
    measured.add_metrics(Stage.COMPACT, "compact", "validation", {"accuracy": 0.9})
    steps = {"search_steps": 20, "total_steps": 30}
    return RunResults(history=HISTORY, summary=measured, score=ACCURACY, final_score=ACCURACY, log=LOG, **steps)


def test_all_logged_losses_and_readings_are_there_from_the_first_step_on():
    _, amounts, losses = charts_of(results())
    assert losses.series[0].finite == [(0, 2.0), (9, 1.0), (29, 0.5)]
    assert losses.series[1].finite == [(10, 1.1)]
    assert amounts.series[1].finite == [(0, 12), (9, 9), (10, 8), (19, 4), (30, 4)]


def test_the_fall_at_the_removal_is_drawn_and_told():
    chart = charts_of(results())[0]
    assert chart.series[0].finite == [(10, 80), (20, 85), (20, 70), (30, 90)]
    assert "Before the removal 85.00 %, right after it 70.00 %, at the end 90.00 %." in chart.caption
    assert "nothing changed then" in charts_of(results(after=0.85))[0].caption


def test_a_dense_run_has_no_removal():
    dense = RunResults(history=HISTORY, score=ACCURACY, final_score=ACCURACY, log=LOG, total_steps=30)
    assert charts_of(dense)[0].series[0].finite == [(10, 80), (30, 90)]


def test_very_many_points_are_thinned_and_end_with_the_last():
    log = [{"step": float(step), "train/loss": 1.0} for step in range(9001)]
    *_, chart = charts_of(
        RunResults(history=History(), score=ACCURACY, final_score=ACCURACY, log=log, total_steps=9001)
    )
    drawn = chart.series[0].finite
    assert len(drawn) <= 2001
    assert (drawn[0][0], drawn[-1][0]) == (0, 9000)


@pytest.mark.parametrize(
    ("kept", "is_moved", "sentence"),
    [
        ([0, 1], True, "Timing of compact copies after the search moved the choice: 1 open head was removed."),
        ([0, 3], True, "moved the choice: 2 open heads were removed and 1 closed head was kept."),
        ([0, 1, 2], False, ""),
        ([0, 1, 2], True, "moved the choice, in feed-forward neurons alone."),
        ([0], False, "By the choice of the objective, 2 open heads were removed."),
    ],
)
def test_open_heads_that_were_removed_are_told(kept, is_moved, sentence):
    history = History(gate_values=[{"a": [1.0, 0.5, 0.2, 0.0]}], is_moved=is_moved)
    told = moved_choice(history, [("a", kept, 4)])
    assert told.endswith(sentence) if sentence else told == ""
