"""Numbers of validation and test batches evaluated at the ends of phases."""

import json
from pathlib import Path

import pytest

import train
from gating.run import data as run_data
from tests.support.tiny_run import compose_settings

pytestmark = pytest.mark.runs


@pytest.fixture(scope="module")
def inputs(inputs: list[str]) -> list[str]:
    return [*inputs, "data.eval_batch_size=2", "logger=csv"]


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that collects the number of batches of each evaluation."""
    seen, evaluate = [], run_data.evaluate

    def count(model, batches, **arguments):
        batches = list(batches)
        seen.append(len(batches))
        return evaluate(model, batches, **arguments)

    monkeypatch.setattr(run_data, "evaluate", count)
    return seen


def metrics_of(folder: Path, *settings: str) -> dict:
    train.run(compose_settings([*settings, f"output_dir={folder}"]))
    return json.loads((folder / "metrics.json").read_text())


# Of 8 validation and 8 test batches: at the end of the search, after the removal, and at the end of the run.
CASES = {
    "trainer.limit_val_batches=0.25": [2, 2, 2, 8],
    "trainer.limit_test_batches=1": [8, 8, 8, 1],
    "debug=fast distillation=logits": [2, 2, 2, 2, 2, 2],
    "debug=fast objective=none": [2, 2],
}


@pytest.mark.parametrize("settings", CASES)
def test_evaluations_at_the_ends_of_phases_respect_the_limits(settings, inputs, evaluated, tmp_path):
    if "objective=none" in settings:
        inputs = [line for line in inputs if not line.startswith("objective")]
    numbers = metrics_of(tmp_path / "run", *inputs, *settings.split())
    assert evaluated == CASES[settings]
    assert {"val/accuracy", "test/accuracy"} <= numbers.keys()


def test_a_run_without_evaluation_finishes_with_its_other_numbers(inputs, evaluated, tmp_path):
    limits = ["trainer.limit_val_batches=0", "trainer.limit_test_batches=0"]
    numbers = metrics_of(tmp_path / "run", *inputs, *limits)
    assert evaluated == []
    assert numbers["num_heads"] == 4
    assert not [name for name in numbers if "accuracy" in name]
