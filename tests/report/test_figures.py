"""Pictures of a run: gates and widths, and score, open units and losses over the steps."""

import base64
import io
import math

import pytest

from gating.report.figures import as_source, course_figures, final_gates
from gating.report.results import History, Observation, RunResults
from gating.report.score import Score
from gating.report.summary import Summary

ACCURACY = Score("accuracy")
GATES = {"a": [0.0, 0.5, 1.0], "b": [1.0, 0.25]}
LOG = [
    {"step": 0.0, "train/loss": 2.5, "train/task_loss": 2.0, "gates/open": 12.0, "gates/expected_open": 12.0},
    {"step": 9.0, "train/loss": 1.5, "train/task_loss": 1.0, "gates/open": 9.0, "gates/expected_open": 8.5},
    {"step": 10.0, "val/loss": 1.1, "val/accuracy": 0.8},
    {"step": 19.0, "gates/open": 4.0, "gates/expected_open": 4.0},
    {"step": 29.0, "train/loss": 0.5},
    {"lr": 0.1},
]
HISTORY = History([Observation(10, 0.8, 8.0, 8, 8.0), Observation(30, 0.9, 4.0, 4, 4.0)])


def results(history=HISTORY, **changes):
    summary = Summary(sizes={"heads": (12, 4), "neurons": (228, 64)}, search={"search_steps": 20})
    for stage, value in (("search", 0.85), ("removed", 0.7), ("compact", 0.9)):
        summary.add_metrics(stage, stage, "validation", {"accuracy": value})
    contents = {"summary": summary, "log": LOG, "removed_at": 20, "total_steps": 30} | changes
    return RunResults(title="a run", history=history, score=ACCURACY, final_score=ACCURACY, **contents)


def axes_of(figure):
    return {one.get_xlabel(): one for one in figure.axes}


def lines_of(figure):
    return {line.get_label(): list(map(tuple, line.get_xydata().tolist())) for line in figure.axes[0].lines}


def test_a_map_has_a_row_for_each_block_and_outlines_the_kept_heads():
    kept = [("a", [0, 2], 3), ("b", [], 2), ("c", [1], 2)]
    axes = axes_of(final_gates(results(History([], GATES), kept=kept)))["head"]
    values = axes.collections[0].get_array()
    assert values.shape == (2, 3)
    assert values[0].tolist() == [0, 0.5, 1]
    assert bool(values.mask[1, 2])
    outlines = [path.get_extents().intervalx.tolist() for path in axes.collections[1].get_paths()]
    assert outlines == [pytest.approx([0.05, 0.95]), pytest.approx([2.05, 2.95])]
    assert axes.yaxis_inverted()


def test_kept_heads_have_their_folded_factors_and_a_gate_of_a_group_each_of_its_heads():
    gates = {"0": [0.0, 0.5, 0.0, 0.25], "1": [0.0, 1.0], "2": [0.5, 0.0]}
    history = History([], gates, {"0": [0.2, 0.25], "2": [0.1, 0.1]})
    kept = [("0", [0, 3], 4), ("1", [], 2), ("2", [0, 1], 4), ("without gates", [0], 1)]
    values = results(history, kept=kept).gate_values()
    assert values == {"0": [0.2, 0.5, 0.0, 0.25], "1": [0.0, 1.0], "2": [0.1, 0.1, 0.0, 0.0]}


@pytest.mark.parametrize(
    ("quantity", "panels"), [("heads", {"head"}), ("neurons", {"neurons"}), ("cost", {"head", "neurons"})]
)
def test_the_final_picture_has_a_panel_for_each_gated_unit(quantity, panels):
    gates = ({} if quantity == "neurons" else {"0": [1.0] * 4}) | ({} if quantity == "heads" else {"fc": [1.0]})
    one = results(History([], gates, quantity=quantity), kept=[("0", [0], 4)], neurons=[("fc", 4, 8)])
    assert panels <= set(axes_of(final_gates(one))) <= panels | {""}


def test_curves_have_all_that_was_logged_and_the_scores_around_the_removal():
    score, amounts, losses = map(lines_of, course_figures(results()).values())
    assert score["validation accuracy"] == [(10, 80), (20, 85), (20, 70), (30, 90)]
    assert score["final model"] == [(30, 90)]
    assert score["removal"][0][0] == 20
    assert "dense reference" not in score
    assert amounts["open"] == [(0, 12), (9, 9), (10, 8), (19, 4), (30, 4)]
    assert (amounts["dense model"], amounts["final model"]) == ([(0, 12)], [(30, 4)])
    assert losses["training loss"] == [(0, 2.0), (9, 1.0), (29, 0.5)]
    assert losses["validation loss"] == [(10, 1.1)]


@pytest.mark.parametrize("count", [0, 1])
def test_runs_with_few_or_no_finite_values_are_drawn(count):
    seen = [Observation(5, math.nan, 1.0, 1, math.nan), Observation(9, math.inf, 1.0, 1, math.nan)][:count]
    summary = Summary(search={"search_steps": 20})
    figures = course_figures(results(History(seen, quantity="cost"), log=[], summary=summary))
    assert list(figures) == ["Accuracy", "Share of the cost"]
    assert "validation accuracy" not in lines_of(figures["Accuracy"])


def test_names_with_signs_of_formulas_and_tags_stay_text():
    score = Score("$\\bad{<b>$")
    one = RunResults(title="", history=HISTORY, score=score, final_score=score, total_steps=30)
    source = as_source(course_figures(one)["$\\bad{<b>$"])
    assert base64.b64decode(source.partition(",")[2]).startswith(b"<?xml")
    gates = results(History([], {"$\\frac.0": [1.0]}), kept=[("$\\frac.0", [0], 1)])
    final_gates(gates).savefig(io.BytesIO())
