"""Gates and objectives of a user, named by ``_target_``, and errors of Hydra before a run begins."""

import sys

import pytest

import train
from tests.support.tiny_run import compose_settings, run_command

pytestmark = pytest.mark.runs

MODULE = """
import gating

def make_gates(model, exclude=(), marked=1):
    gates = gating.inject_gates(model, exclude=exclude)
    gates.marked = marked
    return gates

def no_gates(model):
    return None

class WithoutCheck:
    '''An objective without ``check``, which comes before the first change to a model.'''

    def __init__(self, num_heads):
        self.inner = gating.ExactBudget(num_heads=num_heads)

    def __getattr__(self, name):
        if name in ("inner", "check"):
            raise AttributeError(name)
        return getattr(self.inner, name)

def nothing(num_heads):
    return None
"""
SMALL = ["logger=csv", "trainer.max_steps=4", "callbacks=none"]


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "my_objects.py").write_text(MODULE)
    (tmp_path / "conf" / "objective").mkdir(parents=True)
    for name, function in (("unchecked", "WithoutCheck"), ("nothing", "nothing")):
        path = tmp_path / "conf" / "objective" / f"{name}.yaml"
        path.write_text(f"_target_: my_objects.{function}\nnum_heads: 4\n")
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


def test_functions_that_return_no_gates_or_no_whole_objective_are_refused_before_the_run(own, inputs):
    gates = ["~gates", "+gates={_target_: my_objects.no_gates, _partial_: true}"]
    nothing, unchecked = (
        [f"hydra.searchpath=[file://{own / 'conf'}]", f"objective={name}"] for name in ("nothing", "unchecked")
    )
    for settings, message in (
        (gates, r"gates\._target_ must return HeadGates"),
        (nothing, "returns None"),
        (unchecked, "returns a WithoutCheck, which has no check"),
    ):
        with pytest.raises(ValueError, match=message):
            train.run(compose_settings([*inputs, *SMALL, *settings, f"output_dir={own / 'out'}"]))
    assert not (own / "out").exists()


@pytest.mark.parametrize(
    "command",
    [["gates=3"], ["-m", "hydra.sweeper._target_=nope.Nope", "seed=1,2"]],
    ids=lambda command: command[-1],
)
def test_errors_of_hydra_before_a_run_are_one_sentence(command, tmp_path):
    process = run_command(command, cwd=tmp_path)
    assert process.returncode == 1
    assert process.stderr.startswith("error: ")
    assert "Traceback" not in process.stderr
