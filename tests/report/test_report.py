"""Figures and tables of a run."""

import io
import math

import pytest
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console

from gating.report.card import CompactReport, Row
from gating.report.figures import head_map_figure, save_pictures
from gating.report.history import History, Observation
from gating.report.score import Score
from gating.report.tables import print_report

KEPT = [("encoder.layer.0", [0, 3], 4), ("encoder.layer.1", [], 4), ("encoder.layer.2", [0, 1, 2, 3], 4)]
REPORT = CompactReport(
    rows=[Row("attention heads", "12", "6", "0.50")],
    metrics=[("end of search", "91.00 %", "90.00 %"), ("compact", "92.00 %", "-")],
    notes=["Measured on one thread."],
)


def history(targets=(12.0, 6.0)):
    observations = [Observation(10 * i, 0.5 + 0.1 * i, target, target, target) for i, target in enumerate(targets)]
    return History(observations, [{"layer 0": [0.0, 0.5, 1.0], "layer 1": [1.0, 1.0, 0.25]}])


def pictures_in(folder):
    return {"gates_file": folder / "gates.png", "history_file": folder / "history.png"}


def shown(width=120):
    console = Console(file=io.StringIO(), width=width)
    print_report(console, KEPT, REPORT)
    return console.file.getvalue()


def test_a_map_has_a_row_for_each_block_and_a_column_for_each_head():
    axes = head_map_figure({"a": [0.0, 0.5, 1.0], "b": [1.0, 1.0, 0.25]}, title="Gates").axes[0]
    assert axes.get_title() == "Gates"
    assert axes.images[0].get_array().tolist() == [[0.0, 0.5, 1.0], [1.0, 1.0, 0.25]]
    assert axes.images[0].get_clim() == (0, 1)


def test_blocks_of_different_size_fit_into_one_map():
    array = head_map_figure({"a": [0.0], "b": [1.0, 0.5]}, title="").axes[0].images[0].get_array()
    assert array.shape == (2, 2)
    assert array.mask[0, 1] or math.isnan(array[0, 1])


def test_kept_heads_are_outlined():
    kept = {"a": [0, 2], "c": [1]}
    axes = head_map_figure({"a": [0.0, 0.5, 1.0], "b": [1.0, 1.0, 0.25]}, title="", kept=kept).axes[0]
    assert [(round(patch.get_center()[0]), round(patch.get_center()[1])) for patch in axes.patches] == [(0, 0), (2, 0)]


def test_figures_are_png_files(tmp_path):
    save_pictures(history(), **pictures_in(tmp_path / "report"), score=Score("accuracy"), kept=KEPT, search_steps=10)
    for name in ("gates.png", "history.png"):
        with Image.open(tmp_path / "report" / name) as image:
            assert image.format == "PNG"
            assert min(image.size) > 100


def drawn(monkeypatch, tmp_path, one, kept):
    maps = []
    monkeypatch.setattr("gating.report.figures.head_map_figure", lambda values, **_: maps.append(values) or Figure())
    save_pictures(one, **pictures_in(tmp_path), score=Score("accuracy"), kept=kept, search_steps=10)
    return maps[0]


def test_kept_heads_show_their_folded_factors_and_the_others_their_gates(monkeypatch, tmp_path):
    one = History([], [{"layer 0": [0.0, 0.5, 0.0, 0.25], "layer 1": [0.0, 1.0]}], {"layer 0": [0.2, 0.25]})
    kept = [("layer 0", [0, 3], 4), ("layer 1", [], 2), ("no gates", [0], 1)]
    assert drawn(monkeypatch, tmp_path, one, kept) == {"layer 0": [0.2, 0.5, 0.0, 0.25], "layer 1": [0.0, 1.0]}


def test_a_gate_of_a_group_is_shown_at_each_of_its_heads(monkeypatch, tmp_path):
    one = History([], [{"layer 0": [0.0, 0.5]}], {"layer 0": [0.2, 0.2]})
    assert drawn(monkeypatch, tmp_path, one, [("layer 0", [0, 1], 4)]) == {"layer 0": [0.2, 0.2, 0.5, 0.5]}


def test_history_is_restored_from_checkpoints_of_all_versions():
    one, other = History([], [{"a": [0.0, 1.0]}], {"a": [0.3]}), History()
    other.load_state_dict(one.state_dict())
    assert other == one
    other.load_state_dict({"looks": [], "gate_values": []})
    assert other == History()
    state = history().state_dict()
    other.load_state_dict({"looks": state["observations"], "gate_values": state["gate_values"]})
    assert other == history()


def test_a_dense_run_has_no_map_of_gates(tmp_path):
    observations = [Observation(0, 0.5, 12, 12, math.nan)]
    save_pictures(History(observations), **pictures_in(tmp_path), score=Score("accuracy"), kept=KEPT, search_steps=0)
    assert [path.name for path in tmp_path.iterdir()] == ["history.png"]


@pytest.mark.parametrize("count", [0, 1])
def test_a_run_with_few_observations_is_drawn(tmp_path, count):
    one = History(history().observations[:count])
    save_pictures(one, **pictures_in(tmp_path), score=Score("accuracy"), kept=KEPT, search_steps=5)
    assert (tmp_path / "history.png").exists()


def test_the_table_shows_the_heads_of_each_block():
    lines = shown().splitlines()
    for name, marks, count in (("0", "█··█", "2 of 4"), ("1", "····", "0 of 4"), ("2", "████", "4 of 4")):
        (line,) = [line for line in lines if f"encoder.layer.{name}" in line]
        assert marks in line
        assert count in line


def test_the_tables_show_sizes_stages_and_notes():
    text = shown()
    for wanted in ("attention heads", "0.50", "end of search", "91.00 %", "92.00 %", "Accuracy", "Measured on one"):
        assert wanted in text
