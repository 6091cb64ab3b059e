"""The number that a run returns."""

import json

import pytest

import train
from gating.run.folder import result_of
from tests.support.interruptions import end_of
from tests.support.tiny_run import compose_settings, make_inputs


@pytest.fixture
def folder(tmp_path):
    numbers = {"num_heads": 4, "metric": "f1", "val/f1": 0.5, "test/f1": 0.25, "val/pearson": None, "machine": "x"}
    (tmp_path / "metrics.json").write_text(json.dumps(numbers))
    return tmp_path


@pytest.mark.parametrize(("name", "value"), [(None, 0.5), ("test/f1", 0.25), ("num_heads", 4), ("val/pearson", None)])
def test_value_is_that_of_the_name(name, value, folder):
    assert result_of(folder, name) == value


def test_a_run_without_validation_has_no_value(tmp_path):
    (tmp_path / "metrics.json").write_text('{"metric": "f1", "num_heads": 4}')
    assert result_of(tmp_path, None) is None


@pytest.mark.runs
def test_a_finished_run_returns_its_value_again_and_is_not_lost_for_a_wrong_name(tmp_path, capsys):
    inputs, run = make_inputs(tmp_path), tmp_path / "run"
    value = train.run(compose_settings([*inputs, "logger=csv", f"output_dir={run}"]))
    numbers = json.loads((run / "metrics.json").read_text())
    assert value == numbers["val/accuracy"] == numbers["compact/val/accuracy"]
    assert end_of(run, inputs, "resume=auto", "optimized_metric=test/accurac") == 1
    assert "is not in" in (error := capsys.readouterr().err)
    assert "test/accuracy" in error
    again = [f"resume={run}", "optimized_metric=num_heads"]
    assert train.guarded_run(compose_settings(again), again) == numbers["num_heads"] == 4
