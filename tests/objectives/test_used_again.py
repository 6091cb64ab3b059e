"""Objectives that were used before: they choose as new ones do, or say that they belong to another search."""

import copy

import pytest
import torch

import gating
from gating.errors import OperationError
from tests.support.search import RIVALS, Search
from tests.support.tiers import first_of
from tests.support.tiny_models import build

STEPS = 12
MAKERS = {
    **{name: (lambda make=make: make(num_heads=4)) for name, make in RIVALS.items()},
    "scheduled": lambda: gating.ExactBudget(num_heads=4, schedule=gating.BudgetSchedule(start=0.2)),
    "uniform": lambda: gating.ExactBudget(num_heads=6, uniform=True),
    "price": lambda: gating.FixedPrice(price=50.0),
    "none": lambda: gating.NoObjective(),
}


@pytest.fixture(params=first_of(MAKERS, every=3))
def make(request):
    return MAKERS[request.param]


def search_with(objective, *, seed=0, model="bert"):
    torch.manual_seed(seed)
    return Search(build(model), objective, steps=STEPS)


def trained(search):
    """Train a search whose loss falls, as that of a model which learns."""
    for step in range(STEPS):
        if hasattr(search.objective, "observe"):
            for _ in range(5):
                search.objective.observe(torch.tensor(1.0 if step < 4 else 0.1))
        search.run(step, step + 1)
    return search


def result_of(search):
    kept = search.kept()
    return [
        search.gates.log_alpha,
        search.gates.values(),
        *search.model.state_dict().values(),
        *([] if kept is None else [kept]),
    ]


def assert_same(one, other):
    first, second = result_of(one), result_of(other)
    assert len(first) == len(second)
    for tensor, again in zip(first, second, strict=True):
        assert torch.equal(tensor, again)


def test_a_second_model_gets_the_heads_that_a_new_objective_chooses(make):
    used = make()
    trained(search_with(used, seed=5))
    assert_same(trained(search_with(used)), trained(search_with(make())))


def test_an_objective_is_of_one_search_at_a_time(make):
    objective = make()
    first = search_with(objective)
    second = search_with(objective)
    if not isinstance(objective, gating.NoObjective):  # Without a schedule there is no state.
        with pytest.raises(OperationError, match="each search"):
            first.run(0, 1)
    assert_same(trained(second), trained(search_with(make())))
    objective.attach(first.gates)
    first.run(0, 1)


def test_gates_have_one_objective_at_a_time(make):
    """Nothing of the first one is left: neither its constraint nor its sampler."""
    model = build("bert")
    gates = gating.inject_gates(model)
    state = copy.deepcopy(gates.state_dict())
    first, second = gating.TopK(num_heads=2, uniform=False), make()
    gating.NoObjective().attach(gates)
    first.attach(gates)
    gates.load_state_dict(state, strict=False)
    torch.manual_seed(0)
    second.attach(gates)
    alone = gating.inject_gates(build("bert"))
    torch.manual_seed(0)
    make().attach(alone)
    assert gates.objective is second
    assert gates.log_alpha.requires_grad == alone.log_alpha.requires_grad
    assert torch.equal(gates.values(), alone.values())
    assert gates.state_dict().keys() == alone.state_dict().keys()
    with pytest.raises(OperationError, match="another objective"):
        first.update(gates, 0.5)


def test_a_ranking_of_two_objectives_is_of_the_last_search():
    ranking = gating.Importance()
    first = search_with(gating.IterativePruning(ranking, num_heads=4))
    second = search_with(gating.IterativePruning(ranking, num_heads=4))
    with pytest.raises(OperationError, match="Importance"):
        first.run(0, STEPS)
    second.run(0, STEPS)
    assert second.kept().sum() == 4


def test_a_copy_of_model_and_objective_is_trained_on():
    search = search_with(gating.ExactBudget(num_heads=4)).run(0, 6)
    model, objective = copy.deepcopy((search.model, search.objective))
    objective.update(model.head_gates, 0.9)
    other = copy.deepcopy(search.model)
    search.objective.update(other.head_gates, 0.9)
    assert torch.equal(model.head_gates.values(), other.head_gates.values())


def test_a_budget_by_cost_is_resolved_for_each_model():
    objective = gating.ExactBudget(keep=0.5)
    for model in ("bert", "bert"):
        both = Search(build(model), objective, steps=STEPS, units=["heads", "neurons"], group_size=16)
        both.run(0, STEPS)
        assert 0 < both.kept().sum() < len(both.gates.log_alpha)
    heads = search_with(objective).run(0, STEPS)
    assert heads.kept().sum() == 6
