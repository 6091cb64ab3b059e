"""Runs that make several sizes of one fine-tuned model."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import gating
from gating.errors import InputError
from gating.run import execute, sizes
from gating.run.measured_budget import measured_for, smallest_of
from gating.run.settings import read_settings
from gating.structure.layers import count_units
from tests.support.interruptions import Interrupted, at_batch, end_of, interrupt, run_in
from tests.support.tiny_run import compose_settings

pytestmark = pytest.mark.filterwarnings("ignore:.*(positions are few for layers|it is not fine-tuned)")
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
    page = (folder / "report" / "index.html").read_text()
    assert "2.0" not in page or page
    assert not (folder / "checkpoints").exists()


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
