"""Gates and objectives of a user, named by ``_target_``."""

import sys

import pytest

import train
from tests.support.tiny_run import compose_settings

pytestmark = pytest.mark.runs

MODULE = """
import gating

def make_gates(model, exclude=(), marked=1):
    gates = gating.inject_gates(model, exclude=exclude)
    gates.marked = marked
    return gates

def no_gates(model):
    return None
"""
SMALL = ["logger=csv", "trainer.max_steps=4", "callbacks=none"]


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "my_objects.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("my_objects", None)


def test_gates_of_a_user_are_checked_and_trained(own, inputs):
    gates = "gates={_target_: my_objects.make_gates, _partial_: true, marked: 2}"
    train.run(compose_settings([*inputs, *SMALL, "~gates", f"+{gates}", f"output_dir={own / 'out'}"]))
    assert (own / "out" / "compact" / "config.json").is_file()


def test_a_budget_that_does_not_fit_gates_of_a_user_is_refused_before_the_run(own, inputs):
    gates = "gates={_target_: my_objects.make_gates, _partial_: true, exclude: [encoder.layer.0.attention.self]}"
    wanted = "objective.num_heads=11"
    with pytest.raises(ValueError, match="num_heads=11"):
        train.run(compose_settings([*inputs, *SMALL, "~gates", f"+{gates}", wanted, f"output_dir={own / 'out'}"]))
    assert not (own / "out").exists()
