"""Expected numbers of open gates, targets of schedules, and values of objectives."""

import itertools
import math

import pytest
import torch

import gating
from gating.gates import hard_concrete
from gating.objectives import (
    BudgetSchedule,
    ExactBudget,
    ExpectedCount,
    FixedPrice,
)
from gating.objectives.budget import resolve_budget
from tests.support.gated import num_kept

OPTIONS = {"temperature": 2 / 3, "stretch_limits": (-0.1, 1.1)}
SHIFT = 2 / 3 * math.log(0.1 / 1.1)


def expected_count(log_alpha, target):
    return hard_concrete.prob_open(ExpectedCount([target], **OPTIONS)(log_alpha), **OPTIONS).sum().item()


RANDOM_CASES = [(seed, total, share) for seed, total in enumerate((4, 72, 144)) for share in (0.1, 0.25, 0.6, 0.95)]


@pytest.mark.parametrize(("seed", "total", "share"), RANDOM_CASES)
@pytest.mark.parametrize("spread", [0.1, 3.0, 12.0])
def test_the_expected_count_meets_the_target(seed, total, share, spread):
    log_alpha = torch.randn(total, generator=torch.Generator().manual_seed(seed)) * spread
    assert expected_count(log_alpha, share * total) == pytest.approx(share * total, abs=1e-3)


@pytest.mark.parametrize(("total", "target"), [(144, 1.0), (72, 71.9), (144, 0.02), (72, 0.98 * 72), (1, 0.5)])
@pytest.mark.parametrize("spread", [0.0, 2.0])
def test_the_expected_count_meets_extreme_targets(total, target, spread):
    log_alpha = 2.3 + spread * torch.randn(total, generator=torch.Generator().manual_seed(1))
    assert expected_count(log_alpha, target) == pytest.approx(target, abs=1e-3)


def test_the_offset_of_identical_locations_is_known():
    # sigmoid(a - c - shift) = 1 / 4 for each gate
    offset = ExpectedCount([18.0], **OPTIONS).offset(torch.full((72,), 2.0))
    assert offset.item() == pytest.approx(2.0 - SHIFT - math.log(0.25 / 0.75), abs=1e-4)


def test_the_offset_keeps_the_order_and_the_distances_of_the_gates():
    log_alpha = torch.randn(20, generator=torch.Generator().manual_seed(0))
    shifted = ExpectedCount([5.0], **OPTIONS)(log_alpha)
    torch.testing.assert_close(shifted - shifted[0], log_alpha - log_alpha[0])


@pytest.mark.parametrize("target", [1.0, 5.0, 17.0, 19.6])
def test_the_gradient_of_the_offset_is_that_of_the_implicit_function(target):
    log_alpha = torch.randn(20, generator=torch.Generator().manual_seed(2)).requires_grad_()
    offset = ExpectedCount([target], **OPTIONS).offset(log_alpha)
    offset.backward()
    probs = torch.sigmoid(log_alpha.detach() - offset.detach() - SHIFT)
    slopes = probs * (1 - probs)
    torch.testing.assert_close(log_alpha.grad, slopes / slopes.sum(), rtol=1e-3, atol=1e-5)


def test_the_expected_count_has_no_gradient():
    log_alpha = torch.randn(30, generator=torch.Generator().manual_seed(4)).requires_grad_()
    hard_concrete.prob_open(ExpectedCount([7.0], **OPTIONS)(log_alpha), **OPTIONS).sum().backward()
    # Whatever the gates do, their sum stays: heads compete.
    torch.testing.assert_close(log_alpha.grad, torch.zeros(30), rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", ["linear", "cubic"])
def test_the_schedule_descends_from_total_to_budget(shape):
    schedule = BudgetSchedule(start=0.1, end=0.5, shape=shape)
    targets = [schedule.target(step / 100, total=72, budget=18) for step in range(101)]
    assert targets[:11] == [72] * 11
    assert targets[50:] == [18] * 51
    assert all(earlier >= later for earlier, later in itertools.pairwise(targets))
    assert all(earlier > later for earlier, later in itertools.pairwise(targets[10:51]))


def test_the_schedule_is_linear_or_cubic_in_between():
    assert BudgetSchedule(start=0, end=1).target(0.25, total=72, budget=18) == 18 + 54 * 0.75
    assert BudgetSchedule(start=0, end=1, shape="cubic").target(0.5, total=72, budget=18) == 18 + 54 * 0.125


def test_a_schedule_may_drop_at_once():
    schedule = BudgetSchedule(start=0.3, end=0.3)
    assert schedule.target(0.29, total=72, budget=18) == 72
    assert schedule.target(0.31, total=72, budget=18) == 18


@pytest.mark.parametrize(
    ("num_heads", "keep", "expected"),
    [(1, None, 1), (72, None, 72), (None, 0.25, 18), (None, 1.0, 72), (None, 1e-6, 1)],
)
def test_a_budget_is_a_number_or_a_share(num_heads, keep, expected):
    assert resolve_budget(num_heads, keep, total=72) == expected


def test_a_budget_is_a_quarter_of_the_heads_by_default_with_a_warning(gates):
    with pytest.warns(UserWarning, match="25% stays: give num_heads"):
        search = gating.Search(gates, ExactBudget())
    assert search.kept().sum() == 3


def test_the_budget_is_met_at_every_step(gates):
    objective = ExactBudget(num_heads=3, schedule=BudgetSchedule(start=0.2, end=0.8))
    objective.attach(gates)
    with torch.no_grad():
        gates.log_alpha.normal_(generator=torch.Generator().manual_seed(0))
    targets = []
    for step in range(11):
        objective.update(gates, step / 10)
        targets.append(objective.target(gates))
        assert gates.prob_open().sum().item() == pytest.approx(objective.target(gates), abs=1e-3)
    assert targets[0] == pytest.approx(0.98 * 12)
    assert targets[-1] == 3
    assert all(earlier >= later for earlier, later in itertools.pairwise(targets))
    assert objective.penalty(gates).item() == 0


def test_the_whole_budget_closes_no_gate(gates):
    objective = ExactBudget(num_heads=12)
    objective.attach(gates)
    objective.update(gates, 1.0)
    assert gates.num_open() == 12
    assert num_kept(gates, objective) == 12


def test_the_target_of_the_budget_is_in_the_checkpoint(bert, gates):
    objective = ExactBudget(num_heads=3)
    objective.attach(gates)
    objective.update(gates, 1.0)
    assert bert.state_dict()["head_gates.constraint.target"] == 3


def test_the_penalty_of_a_fixed_price_is_price_times_the_expected_share(gates):
    with torch.no_grad():
        gates.log_alpha.copy_(torch.linspace(-3, 3, 12))
    objective = FixedPrice(price=0.7)
    objective.attach(gates)
    objective.update(gates, 0.5)
    by_hand = 0.7 * sum(1 / (1 + math.exp(-(a - SHIFT))) for a in torch.linspace(-3, 3, 12).tolist()) / 12
    assert objective.penalty(gates).item() == pytest.approx(by_hand, rel=1e-5)


def test_heads_cost_nothing_before_the_start(gates):
    objective = FixedPrice(price=5.0, start=0.2)
    objective.attach(gates)
    for progress, is_free in ((0.0, True), (0.19, True), (0.2, False), (1.0, False)):
        objective.update(gates, progress)
        assert (objective.penalty(gates).item() == 0) == is_free


def test_no_objective_keeps_every_head_open(bert):
    gates, objective = gating.inject_gates(bert), gating.NoObjective()
    objective.check(gates)
    objective.attach(gates)
    objective.update(gates, 0.5)
    with torch.no_grad():
        gates.log_alpha.fill_(-9.0)
    assert gates.num_open() == objective.target(gates) == num_kept(gates, objective) == 12
    assert not gates.log_alpha.requires_grad
    assert objective.penalty(gates).item() == 0
    assert list(objective.parameters()) == []


def test_a_price_leaves_the_number_to_the_gates(gates):
    objective = FixedPrice()
    assert objective.kept(gates) is None
    assert math.isnan(objective.target(gates))
    assert list(objective.parameters()) == []
