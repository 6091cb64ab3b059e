"""Runs that make several sizes of one fine-tuned model."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import gating
from gating.errors import InputError
from gating.run import execute
from gating.run.measured_budget import measured_for, smallest_of
from gating.run.settings import read_settings
from gating.structure.layers import count_units
from tests.support.interruptions import Interrupted, at_batch, end_of, interrupt, run_in
from tests.support.tiny_run import compose_settings

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(positions are few for layers|it is not fine-tuned|times as fast as the dense one here)"
)
HEADS = ("objective.num_heads=[3,8]", "callbacks.checkpoint.every_n_steps=1")


@pytest.fixture
def inputs(tiny_inputs) -> list[str]:
    return [line for line in tiny_inputs if not line.startswith(("recovery", "objective."))]


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.runs
@pytest.mark.first
def test_one_training_makes_each_size(inputs, tmp_path, capsys):
    run_in(tmp_path / "run", inputs, *HEADS)
    folder, said = tmp_path / "run", capsys.readouterr().out
    numbers = json.loads((folder / "metrics.json").read_text())
    assert numbers["sizes"] == {"8-heads": "compact-8-heads", "3-heads": "compact-3-heads"}
    assert numbers["recommended_size"] in numbers["sizes"]
    assert numbers["failed_sizes"] == {}
    for kept in (8, 3):
        assert count_units(gating.load_compact(folder / f"compact-{kept}-heads"), "heads") == kept
        one = json.loads((folder / f"metrics-{kept}-heads.json").read_text())
        assert one["num_heads"] == kept
        assert (folder / f"report-{kept}-heads" / "index.html").is_file()
    assert said.count("units are ranked") == 1
    assert "Size 2 of 2" in said
    assert not (folder / "checkpoints").exists()


@pytest.mark.runs
def test_sizes_with_8_bit_weights_stand_beside_the_dense_model_with_them(inputs, tmp_path, capsys, monkeypatch):
    pytest.importorskip("onnxruntime", reason="the packages of the export are not installed")
    monkeypatch.setattr("gating.run.exports._LOSS", -1000)
    run_in(tmp_path / "run", inputs, *HEADS, "exports=[onnx-int8]")
    numbers = [json.loads((tmp_path / "run" / f"metrics-{kept}-heads.json").read_text()) for kept in (8, 3)]
    assert all(one["speedup_onnx-int8"] > 0 and "onnx-int8/val/accuracy" in one for one in numbers)
    assert len({one["dense-onnx-int8/val/accuracy"] for one in numbers}) == 1
    said = capsys.readouterr().out
    assert said.count("Exporting the dense model to onnx-int8") == 1
    curve = json.loads((tmp_path / "run" / "report" / "curve.json").read_text())
    assert [point["int8_speedup"] for point in curve["points"]] == [one["speedup_onnx-int8"] for one in numbers]
    assert curve["dense"]["int8"] == numbers[0]["dense-onnx-int8/val/accuracy"]
    assert "The 8-bit weights of onnx-int8 have a validation accuracy of" in numbers[0]["warnings"][-1]


@pytest.mark.runs
@pytest.mark.parametrize("at", [9, 14])
def test_sizes_resume_at_any_point_to_the_bit(at, inputs, tmp_path):
    run_in(tmp_path / "whole", inputs, *HEADS)
    with at_batch(at, interrupt), pytest.raises(Interrupted):
        run_in(tmp_path / "run", inputs, *HEADS)
    run_in(tmp_path / "run", inputs, *HEADS, "resume=auto")
    for kept in (8, 3):
        one, two = (weights_of(tmp_path / name / f"compact-{kept}-heads") for name in ("whole", "run"))
        assert all(torch.equal(weight, two[name]) for name, weight in one.items())


@pytest.mark.runs
def test_a_size_that_fails_ends_no_other(inputs, tmp_path, capsys, monkeypatch):
    made = execute.make_size

    def make(run: Any) -> None:
        if run.settings.objective["num_heads"] == 3:
            raise InputError("This size cannot be reached.")
        made(run)

    monkeypatch.setattr(execute, "make_size", make)
    run_in(tmp_path / "run", inputs, *HEADS)
    numbers = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert numbers["failed_sizes"] == {"3-heads": "This size cannot be reached."}
    assert list(numbers["sizes"]) == ["8-heads"]
    assert "3-heads failed: This size cannot be reached." in capsys.readouterr().out
    assert "3-heads failed" in (tmp_path / "run" / "report" / "index.html").read_text()


@pytest.mark.runs
def test_speed_ups_share_their_timings(inputs, tmp_path, capsys):
    run_in(tmp_path / "run", inputs, "objective.speedup=[1.05,1.1]", "gates.units=[heads,neurons]")
    numbers = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert set(numbers["sizes"]) | set(numbers["failed_sizes"]) == {"1.05x", "1.1x"}
    assert capsys.readouterr().out.count("Compact copies are timed on this device") == 1


def test_measured_shares_are_those_of_each_size():
    budget = {"cost": {"heads": 1.0}, "sizes": {"1.5": 0.6, "2": 0.4, "9": "cannot be reached"}}
    assert measured_for(budget, 2) == {"cost": {"heads": 1.0}, "keep": 0.4}
    assert smallest_of(budget) == measured_for(budget, 2)
    with pytest.raises(InputError, match="cannot be reached"):
        measured_for(budget, 9)
    with pytest.raises(InputError, match="cannot be reached"):
        smallest_of({**budget, "sizes": {"9": "cannot be reached"}})
    assert smallest_of({"cost": "macs"}) == {"cost": "macs"}


SORTED = {
    "objective.speedup=[3,1.5,2]": [("speedup", 1.5), ("speedup", 2), ("speedup", 3)],
    "objective.keep=[0.4,0.6]": [("keep", 0.6), ("keep", 0.4)],
    "objective.num_heads=[18,36]": [("num_heads", 36), ("num_heads", 18)],
    "objective.keep=0.4": [],
}


@pytest.mark.parametrize("given", SORTED)
def test_sizes_are_sorted_and_need_a_dense_model(given):
    settings = read_settings(compose_settings(["output_dir=x", given]))
    assert settings.sizes == SORTED[given]
    if settings.sizes:
        assert (settings.plan.fine_tuning, settings.plan.recovery) == (0.67, 0.33)
        assert all(one.plan == settings.plan for one in settings.each_size)


REFUSED = {
    "objective.keep=[0.4,0.4]": "objective.keep=[0.4, 0.4] is no list of sizes",
    "objective.keep=[0.4]": "objective.keep=[0.4] is no list of sizes",
    "objective.keep=[0.4,1.5]": "keep=1.5",
    "objective.num_heads=[2,40]": "40",
    "objective.speedup=[0.5,2]": "speedup=0.5",
    "objective.keep=[0.4,0.6] objective.num_heads=[2,3]": "objective.num_heads and objective.keep are lists",
    "objective.keep=[0.4,0.6] fine_tuning=0": "makes all sizes of one dense model",
    "objective.keep=[0.4,0.6] objective=topk": "makes all sizes of one dense model",
}


@pytest.mark.runs
@pytest.mark.parametrize("given", REFUSED)
def test_lists_that_name_no_sizes_are_refused(given, inputs, tmp_path, capsys):
    assert end_of(tmp_path / "run", inputs, *given.split()) == 1
    assert REFUSED[given] in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
