"""Differentiable subset pruning (Li et al. 2021) as an objective."""

import math

import pytest
import torch

import gating
from gating.training.optimizers import AdamW


@pytest.fixture
def gates(bert):
    return gating.inject_gates(bert)


AT_ONCE = gating.BudgetSchedule(start=0.0, end=0.0)


@pytest.mark.parametrize("variant", ["gumbel", "straight_through"])
def test_exactly_k_heads_are_open_at_every_step(gates, variant):
    objective = gating.TopK(num_heads=5, variant=variant, schedule=AT_ONCE)
    objective.attach(gates)
    for step in range(11):
        objective.update(gates, step / 10)
        assert gates.sample().sum().item() == pytest.approx(5, rel=1e-4)
        assert gates.num_open() == objective.target(gates) == 5
        assert gates.expected_open().item() == pytest.approx(5, rel=1e-4)
    assert objective.penalty(gates).item() == 0
    assert list(objective.parameters()) == []


def test_importance_variables_start_as_xavier_has_it(gates):
    torch.manual_seed(0)
    gating.TopK(num_heads=5, scale=5.0).attach(gates)
    bound = math.sqrt(6 / (3 + 4)) / 5  # three layers of four heads
    assert bound / 2 < gates.log_alpha.abs().max() <= bound
    assert len(gates.log_alpha.unique()) == 12


def test_the_temperature_falls_geometrically_and_stays(gates):
    objective = gating.TopK(num_heads=5, initial_temperature=1000, final_temperature=1e-8, cooldown=0.5)
    objective.attach(gates)
    seen = []
    for progress in (0.0, 0.25, 0.5, 1.0):
        objective.update(gates, progress)
        seen.append(gates.sampler.temperature.item())
    assert seen == pytest.approx([1000, math.sqrt(1000 * 1e-8), 1e-8, 1e-8])


def test_the_learning_rate_of_the_paper_is_five_times_that_of_the_gates(gates):
    """One step of Adam on log_alpha with 0.1 moves w as one on w with 0.5."""
    objective = gating.TopK(num_heads=5, initial_temperature=1000, schedule=AT_ONCE)
    objective.attach(gates)
    before = 5 * gates.log_alpha.detach().clone()
    (gates.sample() * torch.arange(12.0)).sum().backward()
    AdamW(gate_lr=0.1).build(gates, gates=gates).step()
    # A tiny gradient at temperature 1000: Adam's epsilon shows.
    torch.testing.assert_close((5 * gates.log_alpha.detach() - before).abs(), torch.full((12,), 0.5), rtol=1e-2, atol=0)


@pytest.mark.parametrize("schedule", [AT_ONCE, gating.BudgetSchedule()], ids=["at once", "descent"])
@pytest.mark.parametrize("variant", ["gumbel", "straight_through"])
def test_heads_that_help_are_found(gates, variant, schedule):
    """A loss that only wants heads 2, 6 and 7: they win the places."""
    torch.manual_seed(0)
    objective = gating.TopK(
        num_heads=3, variant=variant, initial_temperature=10, final_temperature=0.1, schedule=schedule
    )
    objective.attach(gates)
    optimizer = AdamW(gate_lr=0.1).build(gates, gates=gates)
    wanted = torch.zeros(12).index_fill(0, torch.tensor([2, 6, 7]), 1.0)
    for step in range(60):
        objective.update(gates, step / 60)
        optimizer.zero_grad()
        (gates.sample() - wanted).square().sum().backward()
        optimizer.step()
    assert objective.kept(gates).nonzero().flatten().tolist() == [2, 6, 7]


def test_k_may_descend(gates):
    schedule = gating.BudgetSchedule(start=0.2, end=0.6)
    objective = gating.TopK(num_heads=4, variant="straight_through", schedule=schedule)
    objective.attach(gates)
    seen = []
    for progress in (0.0, 0.4, 0.6, 1.0):
        objective.update(gates, progress)
        seen.append(gates.num_open())
    assert seen == [12, 8, 4, 4]


def test_every_layer_keeps_its_minimum(gates):
    objective = gating.TopK(num_heads=4, min_per_layer=1, variant="straight_through", schedule=AT_ONCE)
    objective.attach(gates)
    with torch.no_grad():
        gates.log_alpha.copy_(torch.arange(12.0))
    assert gates.open_by_block() == dict(zip(gates.block_names, [1, 1, 2], strict=True))
    assert torch.equal(objective.kept(gates), gates.values() > 0)
