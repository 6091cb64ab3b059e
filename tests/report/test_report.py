"""Figures and tables of a run."""

import io
import math

import pytest
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console

from gating.report.figures import gates_figure, save_pictures
from gating.report.history import History, Observation
from gating.report.results import RunResults
from gating.report.rows import CompactReport, Row
from gating.report.score import Score
from gating.report.summary import Summary
from gating.report.tables import print_report

KEPT = [("encoder.layer.0", [0, 3], 4), ("encoder.layer.1", [], 4), ("encoder.layer.2", [0, 1, 2, 3], 4)]
GATES = {"a": [0.0, 0.5, 1.0], "b": [1.0, 1.0, 0.25]}
NEURONS = [("encoder.layer.0.output.dense", 64, 128), ("encoder.layer.1.output.dense", 0, 100)]
TOWERS = [("encoder.layers.0.fc2", 8, 8), ("decoder.layers.0.fc2", 4, 8), ("decoder.layers.1.fc2", 8, 8)]
REPORT = CompactReport(
    rows=[Row("attention heads", "12", "6", "0.50")],
    metrics=[("end of search", "91.00 %", "90.00 %"), ("compact", "92.00 %", "-")],
    notes=["Measured on one thread."],
)


def history(targets=(12.0, 6.0)):
    observations = [Observation(10 * i, 0.5 + 0.1 * i, target, target, target) for i, target in enumerate(targets)]
    return History(observations, [{"layer 0": [0.0, 0.5, 1.0], "layer 1": [1.0, 1.0, 0.25]}])


def save_in(folder, one, *, kept=KEPT, search_steps=10, neurons=()):
    """Save the pictures of a run with these observations."""
    accuracy, steps = Score("accuracy"), {"search_steps": search_steps, "total_steps": 20}
    summary = Summary(sizes={"heads": (12, 6), "neurons": (228, 64)})
    results = RunResults(
        history=one, summary=summary, score=accuracy, final_score=accuracy, kept=kept, neurons=neurons, **steps
    )
    save_pictures(results, gates_file=folder / "gates.png", history_file=folder / "history.png")


def shown(width=120, neurons=()):
    console = Console(file=io.StringIO(), width=width)
    print_report(console, KEPT, REPORT, neurons=neurons)
    return console.file.getvalue()


def test_a_map_has_a_row_for_each_block_and_a_column_for_each_head():
    axes = gates_figure({"a": [0.0, 0.5, 1.0], "b": [1.0, 1.0, 0.25]}, title="Gates").axes[0]
    assert axes.get_title() == "Gates"
    assert axes.images[0].get_array().tolist() == [[0.0, 0.5, 1.0], [1.0, 1.0, 0.25]]
    assert axes.images[0].get_clim() == (0, 1)


def test_blocks_of_different_size_fit_into_one_map():
    array = gates_figure({"a": [0.0], "b": [1.0, 0.5]}, title="").axes[0].images[0].get_array()
    assert array.shape == (2, 2)
    assert array.mask[0, 1] or math.isnan(array[0, 1])


def test_kept_heads_are_outlined():
    kept = {"a": [0, 2], "c": [1]}
    axes = gates_figure({"a": [0.0, 0.5, 1.0], "b": [1.0, 1.0, 0.25]}, title="", kept=kept).axes[0]
    assert [(round(patch.get_center()[0]), round(patch.get_center()[1])) for patch in axes.patches] == [(0, 0), (2, 0)]


def test_figures_are_png_files(tmp_path):
    save_in(tmp_path / "report", history())
    for name in ("gates.png", "history.png"):
        with Image.open(tmp_path / "report" / name) as image:
            assert image.format == "PNG"
            assert min(image.size) > 100


def drawn(monkeypatch, tmp_path, one, kept):
    maps = []
    monkeypatch.setattr("gating.report.figures.gates_figure", lambda values, **_: maps.append(values) or Figure())
    save_in(tmp_path, one, kept=kept)
    return maps[0]


def test_kept_heads_show_their_folded_factors_and_the_others_their_gates(monkeypatch, tmp_path):
    one = History([], [{"layer 0": [0.0, 0.5, 0.0, 0.25], "layer 1": [0.0, 1.0]}], {"layer 0": [0.2, 0.25]})
    kept = [("layer 0", [0, 3], 4), ("layer 1", [], 2), ("no gates", [0], 1)]
    assert drawn(monkeypatch, tmp_path, one, kept) == {"layer 0": [0.2, 0.5, 0.0, 0.25], "layer 1": [0.0, 1.0]}


def test_a_gate_of_a_group_is_shown_at_each_of_its_heads(monkeypatch, tmp_path):
    one = History([], [{"layer 0": [0.0, 0.5]}], {"layer 0": [0.2, 0.2]})
    assert drawn(monkeypatch, tmp_path, one, [("layer 0", [0, 1], 4)]) == {"layer 0": [0.2, 0.2, 0.5, 0.5]}


def test_history_is_restored_from_checkpoints():
    one, other = History([], [{"a": [0.0, 1.0]}], {"a": [0.3]}), History()
    other.load_state_dict(one.state_dict())
    assert other == one
    one = History(history().observations, quantity="cost", spent={"heads": 0.1, "neurons": 0.4})
    other.load_state_dict(one.state_dict())
    assert other == one


def test_a_dense_run_has_no_map_of_gates(tmp_path):
    observations = [Observation(0, 0.5, 12, 12, math.nan)]
    save_in(tmp_path, History(observations), search_steps=0)
    assert [path.name for path in tmp_path.iterdir()] == ["history.png"]


@pytest.mark.parametrize("count", [0, 1])
def test_a_run_with_few_observations_is_drawn(tmp_path, count):
    one = History(history().observations[:count])
    save_in(tmp_path, one, search_steps=5)
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


def bars(axes):
    return [(bar.get_y() + bar.get_height() / 2, bar.get_width()) for bar in axes.patches]


def test_widths_of_feed_forward_blocks_are_bars_on_those_of_the_dense_model():
    axes = {axes.get_xlabel(): axes for axes in gates_figure(GATES, title="Gates", neurons=NEURONS).axes}
    assert set(axes) == {"head", "neurons", ""}  # "" is the scale of colors.
    assert bars(axes["neurons"]) == [(0, 128), (0, 64), (1, 100), (1, 0)]
    assert axes["neurons"].get_title() == "64 of 228 neurons"
    assert [label.get_text() for label in axes["neurons"].get_yticklabels()] == ["0", "1"]
    assert axes["neurons"].yaxis_inverted()


def test_encoder_and_decoder_have_names_and_colors():
    (axes,) = gates_figure({}, title="", neurons=TOWERS).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["encoder 0", "decoder 0", "decoder 1"]
    first, second, third = (bar.get_facecolor() for bar in axes.patches[1::2])
    assert first != second == third


@pytest.mark.parametrize("names", [["dense"], ["a.0.x", "b.0.x", "c.0.x", "d.0.x", "e.0.x", "f.0.x"], ["0.dense"]])
def test_blocks_with_any_names_are_drawn(names):
    gates_figure({}, title="", neurons=[(name, 4, 8) for name in names])


def test_a_bar_shows_the_cost_of_each_kind_and_the_budget():
    figure = gates_figure(GATES, title="", neurons=NEURONS, spent={"heads": 0.2, "neurons": 0.25}, target=0.5)
    (axes,) = [axes for axes in figure.axes if axes.get_xlabel().startswith("share of the cost")]
    assert [bar.get_x() for bar in axes.patches] == pytest.approx([0, 20, 45])
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([20, 25, 55])
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert sorted(labels) == ["budget 50.0 %", "heads 20.0 %", "neurons 25.0 %", "removed 55.0 %"]
    assert axes.lines[0].get_xdata()[0] == 50


def test_without_gates_on_neurons_the_figure_is_the_map_of_heads():
    axes = gates_figure(GATES, title="Gates", kept={"a": [0]}).axes
    assert [one.get_xlabel() for one in axes] == ["head", ""]  # "" is the scale of colors.
    assert axes[0].get_title() == "Gates"
    assert len(axes[0].patches) == 1


def saved_figures(monkeypatch, tmp_path, one):
    """Return the figures of a run by the stem of their file."""
    saved = {}
    monkeypatch.setattr(Figure, "savefig", lambda self, file, **_: saved.update({file.stem: self}))
    save_in(tmp_path, one, neurons=NEURONS)
    return saved


AXES = {
    "heads": ("Open heads", 12, [6, 3]),
    "neurons": ("Open neurons", 228, [6, 3]),
    "cost": ("Share of the cost (%)", 100, [60, 30]),
}


@pytest.mark.parametrize("quantity", AXES)
def test_the_history_shows_the_quantity_of_the_budget(quantity, monkeypatch, tmp_path):
    label, total, values = AXES[quantity]
    first, second = (0.6, 0.3) if quantity == "cost" else (6, 3)
    seen = [Observation(0, 0.5, first, first, first), Observation(10, 0.5, second, second, second)]
    axes = saved_figures(monkeypatch, tmp_path, History(seen, quantity=quantity))["history"].axes[1]
    assert axes.get_ylabel() == label
    low, high = axes.get_ylim()
    assert low == 0
    assert total <= high <= 1.35 * total
    assert [list(line.get_ydata()) for line in axes.lines[:3]] == [values] * 3
    removed = "heads and neurons removed" if quantity == "cost" else f"{quantity} removed"
    assert axes.get_legend().get_texts()[-1].get_text() == removed


@pytest.mark.parametrize(("quantity", "panels"), [("heads", 2), ("neurons", 1), ("cost", 4)])
def test_the_figure_of_a_run_has_a_panel_for_each_gated_unit(quantity, panels, monkeypatch, tmp_path):
    attention = {} if quantity == "neurons" else {name: [1.0] * 4 for name, _, _ in KEPT}
    feed_forward = {} if quantity == "heads" else {name: [1.0, 0.0] for name, _, _ in NEURONS}
    spent = {"heads": 0.1, "neurons": 0.4} if quantity == "cost" else {}
    one = History([], [attention | feed_forward], quantity=quantity, spent=spent)
    axes = saved_figures(monkeypatch, tmp_path, one)["gates"].axes
    assert len(axes) == panels
    maps = [one for one in axes if one.get_xlabel() == "head"]
    assert all(one.images[0].get_array().shape == (3, 4) for one in maps)


def test_the_table_of_neurons_has_a_bar_for_each_block():
    lines = shown(neurons=[*NEURONS, ("encoder.layer.2.output.dense", 1, 3072), ("last", 3071, 3072)]).splitlines()
    bars_of = {line.split()[1]: line for line in lines if "·" in line and ("dense" in line or "last" in line)}
    assert "█" * 12 + "·" * 12 in bars_of["encoder.layer.0.output.dense"]
    assert "64 of 128" in bars_of["encoder.layer.0.output.dense"]
    counts = [(line.count("█"), line.count("·")) for line in bars_of.values()]
    assert counts == [(12, 12), (0, 24), (1, 23), (23, 1)]
    assert "3,071 of 3,072" in bars_of["last"]


def test_no_table_of_neurons_where_all_are_kept():
    assert "Neurons per layer" not in shown(neurons=[("a", 8, 8)])
    assert "Neurons per layer" in shown(neurons=NEURONS)
