"""The search ends when the same heads stay open for long enough."""

import pytest
import torch

import gating
from gating.objectives.search import Convergence


@pytest.fixture
def gates(bert):
    gates = gating.inject_gates(bert)
    set_open(gates, range(4))
    return gates


def set_open(gates, indices, undecided=()):
    with torch.no_grad():
        gates.log_alpha.fill_(-8.0)
        gates.log_alpha[list(indices)] = 8.0
        gates.log_alpha[list(undecided)] = 0.0


def test_search_ends_when_the_same_heads_stay(gates):
    convergence = Convergence(patience=3)
    assert [convergence.update(gates) for _ in range(3)] == [None] * 3
    assert convergence.update(gates) == (
        "the choice of 4 heads did not change at 3 checks in a row, and 0% of the gates are undecided"
    )


def test_another_choice_starts_the_count_again(gates):
    convergence = Convergence(patience=2)
    convergence.update(gates)
    convergence.update(gates)
    set_open(gates, range(1, 5))
    assert convergence.update(gates) is None
    assert convergence.update(gates) is None
    assert convergence.update(gates) is not None


def test_undecided_gates_delay_the_end(gates):
    set_open(gates, range(4), undecided=[3])
    convergence = Convergence(patience=1, max_undecided=0.05)
    assert [convergence.update(gates) for _ in range(3)] == [None] * 3
    assert Convergence(patience=1, max_undecided=0.1).update(gates) is None  # the first check
    convergence = Convergence(patience=1, max_undecided=0.1)
    convergence.update(gates)
    assert "8% of the gates are undecided" in convergence.update(gates)


def test_a_search_above_its_budget_continues(gates):
    objective = gating.ExactBudget(num_heads=2)
    kept = objective.kept(gates)
    convergence = Convergence(patience=1)
    assert [convergence.update(gates, kept) for _ in range(3)] == [None] * 3
    set_open(gates, kept.nonzero().flatten().tolist())
    assert "choice of 2 heads" in convergence.update(gates, objective.kept(gates))


def test_heads_are_counted_not_gates():
    from tests.support.family_models import FAMILIES

    gates = gating.inject_gates(FAMILIES["llama"].build())
    convergence = Convergence(patience=1)
    convergence.update(gates)
    assert "choice of 24 heads" in convergence.update(gates)


def test_a_resumed_count_continues(gates):
    first = Convergence(patience=2)
    first.update(gates)
    first.update(gates)
    second = Convergence(patience=2)
    second.load_state_dict(first.state_dict())
    assert second.update(gates) == first.update(gates) is not None


def test_the_rest_of_a_budget_of_cost_may_leave_a_gate_open(bert):
    gates = gating.inject_gates(bert, units=("heads", "neurons"), group_size=20)
    with torch.no_grad():
        gates.log_alpha.copy_(torch.tensor([9.0, -9.0, -9.0]).repeat(7))
    kept = gates.values() > 0
    kept[0] = False
    convergence = Convergence(patience=1)
    assert convergence.update(gates, kept) is None
    assert convergence.update(gates, kept).startswith(
        "the choice of 3 heads and 60 neurons did not change at 1 check in a row"
    )
    kept[3] = False
    assert convergence.update(gates, kept) is None
    assert convergence.update(gates, kept) is None
