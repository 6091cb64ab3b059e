"""Runs that fine-tune densely, choose units by a ranking, and recover from their own dense state."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import gating
from gating.plan import Plan, make_plan
from gating.run import execute
from gating.structure.layers import count_units
from tests.support.interruptions import Interrupted, at_batch, end_of, interrupt, run_in

pytestmark = pytest.mark.filterwarnings("ignore:.*(positions are few for layers|it is not fine-tuned)")
RANKED = ("fine_tuning=0.5", "distillation=own")
BOTH = ("gates.units=[heads,neurons]", "objective.num_heads=null", "objective.keep=0.5", "distillation=own")


@pytest.fixture
def inputs(tiny_inputs) -> list[str]:
    return [line for line in tiny_inputs if not line.startswith("recovery")]


def numbers_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text())


@pytest.mark.runs
@pytest.mark.first
def test_units_are_ranked_after_the_dense_steps_and_the_rest_recovers(inputs, tmp_path, capsys):
    run_in(tmp_path / "run", inputs, *RANKED)
    numbers, said = numbers_of(tmp_path / "run"), capsys.readouterr().out
    assert (numbers["fine_tuning_steps"], numbers["search_steps"]) == (6, 0)
    assert numbers["num_heads"] == 4
    assert count_units(gating.load_compact(tmp_path / "run" / "compact"), "heads") == 4
    # The line that a second run would have been needed for.
    assert {"dense/val/accuracy", "dense/test/accuracy", "removed/val/accuracy", "compensated/val/accuracy"} <= set(
        numbers
    )
    assert "dense, before the removal" in said
    assert "This run has no dense one beside it" not in said
    assert "12 steps" in said
    assert {"dense", "search", "recovery"} <= {name[8:] for name in numbers if name.startswith("seconds/")}
    page = (tmp_path / "run" / "report" / "index.html").read_text()
    assert "after 6 steps of the dense model." in page
    assert "then trained for 6 steps" in page


@pytest.mark.runs
def test_the_choice_is_that_of_the_python_functions(inputs, tmp_path, monkeypatch):
    """The dense folder of a run, ranked and removed by the functions of the core, loses the same units."""
    from gating.run import phases

    seen = {}

    def removed(run: Any) -> None:
        seen["model"] = {name: weight.clone() for name, weight in run.state.model.state_dict().items()}
        seen["batches"] = run.data.module.sample_batches(96)
        interrupt()

    monkeypatch.setattr(phases, "_save_removed", removed)
    with pytest.raises(Interrupted):
        run_in(tmp_path / "run", inputs, *BOTH, "compensate=false")
    from gating.compensation.ranking import rank_units, remove_chosen
    from gating.data.examples import model_inputs

    model = gating.load_compact(tmp_path / "run" / "dense")
    batches = [model_inputs(batch) for batch in seen["batches"]]
    gates = rank_units(model, batches, keep=0.5)
    remove_chosen(model, gating.ExactBudget(keep=0.5).kept(gates))
    found = model.state_dict()
    assert all(torch.equal(weight, found[name]) for name, weight in seen["model"].items())


@pytest.mark.runs
@pytest.mark.parametrize(
    "given", [("recovery=1.0", *RANKED[1:]), ("recovery=1.0", "distillation=none", "compensate=false")]
)
def test_a_model_that_is_fine_tuned_already_is_ranked_first_of_all(given, inputs, tmp_path):
    run_in(tmp_path / "run", inputs, *given)
    numbers = numbers_of(tmp_path / "run")
    assert numbers["search_steps"] == 0
    assert numbers["num_heads"] == 4
    assert "dense/val/accuracy" in numbers
    assert not (tmp_path / "run" / "dense").exists()


@pytest.mark.runs
@pytest.mark.parametrize("moment", ["remove", "recover", "export"])
def test_a_ranked_run_resumes_between_its_phases(moment, inputs, tmp_path, monkeypatch):
    settings = (*BOTH, "callbacks.checkpoint.every_n_steps=1")
    run_in(tmp_path / "whole", inputs, *settings)
    with monkeypatch.context() as patch:
        patch.setattr(execute, moment, lambda *_, **__: interrupt())
        with pytest.raises(Interrupted):
            run_in(tmp_path / "run", inputs, *settings)
    with at_batch(99, interrupt) as steps:
        run_in(tmp_path / "run", inputs, *settings, "resume=auto")
    # No dense step is taken again.
    assert min(steps, default=8) >= 8
    one, two = (load_file(tmp_path / name / "compact" / "model.safetensors") for name in ("whole", "run"))
    assert all(torch.equal(weight, two[name]) for name, weight in one.items())


REFUSED = {
    "fine_tuning=0.5 objective=topk recovery=0.5": "leave no step in which TopK learns gates",
    "fine_tuning=0.7 recovery=0.5": "are more than all steps",
    "fine_tuning=-0.1": "fine_tuning=-0.1 is not a share of the steps",
    "fine_tuning=0.5 optimizer.freeze=true": "optimizer.freeze=search",
    "fine_tuning=0.5 recovery=0.25 compensate=true": "compensate=true follows the dense model",
}


@pytest.mark.runs
@pytest.mark.parametrize("given", REFUSED)
def test_a_plan_that_lacks_something_is_refused_before_anything_is_trained(given, inputs, tmp_path, capsys):
    assert end_of(tmp_path / "run", inputs, *given.split()) == 1
    assert REFUSED[given] in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("total", [1, 2, 3, 10, 600])
def test_steps_of_a_plan_are_all_steps(total):
    assert sum(Plan(0.0, 0.25).steps(total)) <= total
    for plan in (Plan(0.67, 0.33), Plan(0.5, 0.5), Plan(0.0, 1.0)):
        dense, search = plan.steps(total)
        assert search == 0
        assert dense <= total
    dense, search = Plan(0.5, 0.25).steps(600)
    assert (dense, search) == (300, 150)


def test_the_default_depends_on_the_units_and_on_what_is_frozen():
    def plan(units: Any, **changes: Any) -> tuple[float, float]:
        given = {"fine_tuning": None, "recovery": None, "can_rank": True, "is_default": True, "is_frozen": False}
        given |= {"learns_from_itself": False, "is_needed": False, **changes}
        made = make_plan(units, **given)
        return made.fine_tuning, made.recovery

    assert plan("heads") == (0.0, 0.0)
    assert plan(["heads", "neurons"]) == (0.67, 0.33)
    assert plan(["heads", "neurons"], recovery=0.5) == (0.5, 0.5)
    assert plan(["heads", "neurons"], is_frozen=True, is_needed=True) == (0.0, 0.25)
    assert plan(["heads", "neurons"], is_default=False) == (0.0, 0.25)
