"""Differentiable subset pruning (Li et al. 2021), and its relaxed top-k, that of Xie and Ermon (2019)."""

import math

import pytest
import torch

import gating
from gating.objectives import HeadBudget
from gating.objectives.subset import GumbelTopK, StraightThroughTopK, gumbel_noise, soft_knapsack, soft_top_k
from gating.training.optimizers import AdamW
from tests.support.family_models import FAMILIES


def soft_top_k_by_hand(scores, k, temperature):
    left, total = list(scores), [0.0] * len(scores)
    for _ in range(k):
        weights = [math.exp(r / temperature) for r in left]
        taken = [weight / sum(weights) for weight in weights]
        total = [a + b for a, b in zip(total, taken, strict=True)]
        left = [r + math.log(1 - p) for r, p in zip(left, taken, strict=True)]
    return total


@pytest.mark.parametrize("temperature", [0.3, 1.0, 5.0])
@pytest.mark.parametrize("k", [1, 2, 4])
def test_relaxation_is_the_iterated_softmax(k, temperature):
    scores = [0.3, -1.0, 1.2, 0.1, 0.4]
    by_hand = torch.tensor(soft_top_k_by_hand(scores, k, temperature))
    torch.testing.assert_close(soft_top_k(torch.tensor(scores), k, temperature), by_hand)


@pytest.mark.parametrize("temperature", [1000.0, 1.0, 0.1, 1e-8])
@pytest.mark.parametrize(("n", "k"), [(72, 8), (72, 18), (144, 100), (5, 5)])
def test_relaxation_sums_to_k(n, k, temperature):
    scores = 3 * torch.randn(n, generator=torch.Generator().manual_seed(n + k))
    relaxed = soft_top_k(scores, k, temperature)
    assert relaxed.dtype == torch.float32
    assert relaxed.sum().item() == pytest.approx(k, rel=1e-4)


@pytest.mark.parametrize("spread", [1.0, 100.0])
def test_relaxation_is_the_k_largest_when_cold_and_even_when_hot(spread):
    scores = spread * torch.randn(72, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(72).index_fill(0, scores.topk(8).indices, 1.0)
    torch.testing.assert_close(soft_top_k(scores, 8, 1e-8), mask)
    torch.testing.assert_close(soft_top_k(scores / spread, 8, 1e6), torch.full((72,), 8 / 72), rtol=1e-3, atol=0)


def test_gradient_of_the_relaxation_equals_finite_differences():
    scores = torch.randn(6, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
    weights = torch.arange(6.0)
    (soft_top_k(scores, 3, 0.7) * weights).sum().backward()
    for index in range(6):
        moved = torch.zeros(6, dtype=torch.float64)
        moved[index] = 1e-3
        with torch.no_grad():
            up, down = ((soft_top_k(scores + way * moved, 3, 0.7) * weights).sum().item() for way in (1, -1))
        assert scores.grad[index].item() == pytest.approx((up - down) / 2e-3, abs=2e-3)


@pytest.mark.parametrize("temperature", [1000.0, 1e-8])
def test_gradient_of_the_relaxation_is_finite_at_both_ends(temperature):
    scores = torch.randn(72, generator=torch.Generator().manual_seed(2)).requires_grad_()
    (soft_top_k(scores, 8, temperature) * torch.arange(72.0)).sum().backward()
    assert scores.grad.isfinite().all()


def test_scores_of_minus_infinity_are_never_drawn():
    scores = torch.tensor([5.0, -torch.inf, 1.0, 0.0]).requires_grad_()
    relaxed = soft_top_k(scores, 2, 0.5)
    assert relaxed[1] == 0
    relaxed[0].backward()
    assert scores.grad.isfinite().all()


def test_noise_makes_the_first_draw_one_of_a_softmax():
    torch.manual_seed(0)
    scores = torch.tensor([1.0, 0.0, -1.0])
    draws = torch.stack([(scores + gumbel_noise(scores)).argmax() for _ in range(4000)])
    # Three standard deviations of a share of 4000 draws are below .024.
    torch.testing.assert_close(draws.bincount(minlength=3) / 4000, scores.softmax(0), rtol=0, atol=0.024)


def test_straight_through_values_are_a_mask_with_the_gradient_of_log_alpha(gates):
    sampler = StraightThroughTopK(HeadBudget(num_heads=5).parts(gates))
    with torch.no_grad():
        gates.log_alpha.normal_(generator=torch.Generator().manual_seed(0))
    values = sampler.sample(gates.log_alpha)
    assert sorted(values.tolist()) == [0.0] * 7 + [1.0] * 5
    assert set(values.nonzero().flatten().tolist()) == set(gates.log_alpha.topk(5).indices.tolist())
    (values * torch.arange(12.0)).sum().backward()
    assert gates.log_alpha.grad.tolist() == list(range(12))


@pytest.mark.parametrize("autocast", [False, True])
def test_draws_sum_to_the_number_of_heads(gates, autocast):
    sampler = GumbelTopK(HeadBudget(num_heads=5).parts(gates), scale=5.0, temperature=0.5)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        draw = sampler.sample(gates.log_alpha)
    assert draw.dtype == torch.float32
    assert draw.sum().item() == pytest.approx(5, rel=1e-4)
    assert sampler.prob_open(gates.log_alpha).sum().item() == pytest.approx(5, rel=1e-4)
    assert sampler.values(gates.log_alpha).sum() == 5
    (draw * torch.arange(12.0)).sum().backward()
    assert gates.log_alpha.grad.abs().sum() > 0


@pytest.mark.parametrize("temperature", [0.01, 1e-4])
def test_gradient_of_a_draw_does_not_explode(gates, temperature):
    """Clipped together with a gradient of 1e15, weights would not learn."""
    sampler = GumbelTopK(HeadBudget(num_heads=11).parts(gates), scale=5.0, temperature=temperature)
    for seed in range(20):
        torch.manual_seed(seed)
        gates.log_alpha.grad = None
        (sampler.sample(gates.log_alpha) * torch.arange(12.0)).sum().backward()
        assert gates.log_alpha.grad.isfinite().all()
        assert gates.log_alpha.grad.norm() <= 1.001


def test_a_gate_of_a_group_counts_as_its_heads():
    gates = gating.inject_gates(FAMILIES["llama"].build())
    sampler = GumbelTopK(HeadBudget(num_heads=10).parts(gates), scale=1.0, temperature=0.5)
    assert (sampler.values(gates.log_alpha) * 2).sum() == 10
    assert (sampler.sample(gates.log_alpha) * 2).sum().item() == pytest.approx(10, rel=1e-4)


WEIGHTS = torch.tensor([2.0, 1.0, 1.0, 3.0, 0.5])
SCORES = torch.tensor([0.3, -1.0, 1.2, 0.1, 0.4])


@pytest.mark.parametrize("temperature", [1000.0, 1.0, 0.1, 1e-4])
@pytest.mark.parametrize("budget", [0.3, 3.0, 7.4])
def test_relaxed_knapsack_uses_the_budget(budget, temperature):
    drawn = soft_knapsack(SCORES, WEIGHTS, torch.tensor(budget), temperature)
    assert drawn.dtype == torch.float32
    assert (drawn * WEIGHTS).sum().item() == pytest.approx(budget, rel=1e-3)
    # The order is that of the scores.
    assert (drawn[SCORES.argsort()].diff() >= -1e-6).all()


def test_relaxed_knapsack_is_fractional_when_cold_and_even_when_hot():
    cold = soft_knapsack(SCORES, WEIGHTS, torch.tensor(2.5), 1e-4)
    torch.testing.assert_close(cold, torch.tensor([0.5, 0.0, 1.0, 0.0, 1.0]), rtol=0, atol=1e-3)
    hot = soft_knapsack(SCORES, WEIGHTS, torch.tensor(2.5), 1e6)
    torch.testing.assert_close(hot, torch.full((5,), 2.5 / 7.5), rtol=1e-3, atol=0)


def test_relaxed_knapsack_maximizes_value_and_entropy():
    """No exchange of weight between two items is better."""
    temperature = 0.7
    p = soft_knapsack(SCORES, WEIGHTS, torch.tensor(3.0), temperature).double()
    marginal = SCORES + temperature * (1 / p - 1).log()
    torch.testing.assert_close(marginal, marginal[:1].expand(5), rtol=0, atol=1e-3)


def test_gradient_of_the_relaxed_knapsack_equals_finite_differences():
    scores = SCORES.double().requires_grad_()
    values = torch.arange(5.0)
    (soft_knapsack(scores, WEIGHTS, torch.tensor(3.0), 0.7) * values).sum().backward()
    for index in range(5):
        moved = torch.zeros(5, dtype=torch.float64)
        moved[index] = 1e-2
        with torch.no_grad():
            up, down = (
                (soft_knapsack(scores + way * moved, WEIGHTS, torch.tensor(3.0), 0.7) * values).sum().item()
                for way in (1, -1)
            )
        assert scores.grad[index].item() == pytest.approx((up - down) / 2e-2, abs=2e-3)


def test_items_without_weight_are_never_drawn_and_a_whole_budget_draws_all_others():
    weights = torch.tensor([1.0, 0.0, 2.0])
    drawn = soft_knapsack(torch.tensor([0.0, 9.0, 1.0]), weights, torch.tensor(3.0), 0.1)
    assert drawn[1] == 0
    assert (drawn[[0, 2]] > 0.999).all()


@pytest.mark.parametrize("arguments", [{"num_neurons": 68}, {"keep": 0.4}])
def test_draws_of_neurons_and_of_cost_use_the_budget(bert, arguments):
    gates = gating.inject_gates(bert, units=("heads", "neurons"), group_size=20)
    parts = HeadBudget(**arguments).parts(gates)
    sampler = GumbelTopK(parts, scale=5.0, temperature=0.01)
    part = parts[-1]
    own, sizes = list(part.gates), torch.tensor(part.sizes)
    for values in (sampler.sample(gates.log_alpha), sampler.prob_open(gates.log_alpha)):
        assert (values[own] * sizes).sum().item() == pytest.approx(part.limit, rel=1e-3)
    assert (sampler.values(gates.log_alpha)[own] * sizes).sum() <= part.limit + 1e-6
    (sampler.sample(gates.log_alpha) * torch.arange(21.0)).sum().backward()
    assert 0 < gates.log_alpha.grad[own].norm() <= 1.001


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
