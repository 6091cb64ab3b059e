"""Budgets over gates of heads and of neurons: exact numbers of each, or one share of the cost of both."""

import pytest
import torch

import gating
from gating.gates import create_gates
from gating.objectives import BudgetSchedule
from gating.objectives.costs import gate_costs
from gating.objectives.parts import amount_of
from tests.support.family_models import FAMILIES
from tests.support.search import RIVALS, Search
from tests.support.tiers import first_of
from tests.support.tiny_models import build

STEPS = 6
BOTH = ("heads", "neurons")
# Three layers of 4 heads and of 48 neurons; groups of 20 leave a last one of 8.
GROUP = 20
BUDGETS = [{"keep": 0.4}, {"num_heads": 5, "num_neurons": 68}, {"keep": 0.4, "uniform": True}]


def search_with(objective, *, units=BOTH, group_size=GROUP, model=None):
    torch.manual_seed(0)
    return Search(model or build("bert"), objective, steps=STEPS, units=units, group_size=group_size)


def count(gates, kept):
    """Return the heads and neurons of kept gates."""
    pairs = list(zip(gates.counts["heads"], gates.counts["neurons"], kept.tolist(), strict=True))
    return sum(heads for heads, _, keeps in pairs if keeps), sum(neurons for _, neurons, keeps in pairs if keeps)


def check_filled(gates, kept, share, cost="macs"):
    """Check that the kept gates are within the budget, and that no other gate fits."""
    costs = gate_costs(gates, cost)
    budget, used = share * costs.sum(), costs[kept].sum()
    assert used <= budget * (1 + 1e-9)
    assert (used + costs[~kept] > budget * (1 - 1e-9)).all()


def block_units(gates, kept):
    """Return the kept heads or neurons of each block."""
    units = torch.tensor([max(pair) for pair in zip(gates.counts["heads"], gates.counts["neurons"], strict=True)])
    return [int(block.sum()) for block in (units * kept).split(gates.block_sizes)]


@pytest.fixture(params=first_of(RIVALS, every=3))
def rival(request):
    return request.param


@pytest.mark.parametrize(
    ("arguments", "expected"),
    first_of(
        [
            ({"num_heads": 5, "num_neurons": 68}, (5, 68)),
            ({"num_neurons": 16, "min_per_layer": 1}, (12, 16)),
            ({"num_heads": {"encoder": 1}}, (1, 144)),
        ]
    ),
)
def test_numbers_of_both_are_exact(rival, arguments, expected):
    search = search_with(RIVALS[rival](**arguments)).run(0, STEPS)
    kept = search.kept()
    assert count(search.gates, kept) == expected
    report = gating.finalize(search.model.eval(), search.gates, kept=kept)
    assert (report.num_heads, report.num_neurons) == expected


@pytest.mark.parametrize(
    ("share", "cost"), first_of([(0.1, "parameters"), (0.4, {"heads": 1.0, "neurons": 0.3}), (1.0, "macs")])
)
def test_a_share_of_cost_is_filled(rival, share, cost):
    search = search_with(RIVALS[rival](keep=share, cost=cost)).run(0, STEPS)
    kept = search.kept()
    check_filled(search.gates, kept, share, cost)
    assert search.objective.target(search.gates) == pytest.approx(share, abs=2e-6)
    for other in (0.2, 0.7):
        check_filled(search.gates, search.objective.kept_at(search.gates, other), other, cost)
    report = gating.finalize(search.model.eval(), search.gates, kept=kept)
    assert (report.num_heads, report.num_neurons) == count(search.gates, kept)


@pytest.mark.parametrize(
    ("arguments", "expected"), first_of([({"num_neurons": 60}, 60), ({"keep": 0.5}, 68), ({"keep": 0.25}, 36)])
)
def test_gates_on_neurons_alone_have_numbers_of_neurons(rival, arguments, expected):
    search = search_with(RIVALS[rival](**arguments), units=("neurons",)).run(0, STEPS)
    kept = search.kept()
    assert count(search.gates, kept) == (0, expected)
    assert search.objective.target(search.gates) == pytest.approx(expected)
    check_filled(search.gates, search.objective.kept_at(search.gates, 1.0), 1.0)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"num_heads": 6, "num_neurons": 84}, [2, 2, 2, 28, 28, 28]),
        ({"num_heads": 12, "num_neurons": 24, "min_per_layer": 2}, [4, 4, 4, 8, 8, 8]),
    ],
)
def test_uniform_layers_keep_equally_many(rival, arguments, expected):
    search = search_with(RIVALS[rival](uniform=True, **arguments)).run(0, STEPS)
    assert block_units(search.gates, search.kept()) == expected


@pytest.mark.parametrize("share", first_of([0.25, 0.5, 0.8]))
def test_uniform_layers_share_a_budget_of_cost(rival, share):
    search = search_with(RIVALS[rival](uniform=True, keep=share, min_per_layer=1)).run(0, STEPS)
    kept = search.kept()
    heads, neurons = block_units(search.gates, kept)[:3], block_units(search.gates, kept)[3:]
    assert len(set(heads)) == len(set(neurons)) == 1
    assert heads[0] >= 1
    costs = gate_costs(search.gates, "macs")
    used, first_of_each = costs[kept].sum(), torch.tensor([*range(4), *range(12, 15)])
    others = first_of_each[~kept[first_of_each]]
    assert used <= share * costs.sum() * (1 + 1e-9)
    assert (used + 3 * costs[others] > share * costs.sum()).all()


def test_a_minimum_of_heads_comes_before_neurons(rival):
    search = search_with(RIVALS[rival](keep=0.2, min_per_layer=1)).run(0, STEPS)
    kept = search.kept()
    assert min(block_units(search.gates, kept)[:3]) >= 1
    check_filled(search.gates, kept, 0.2)


@pytest.mark.parametrize("arguments", first_of(BUDGETS))
def test_a_resumed_search_is_the_uninterrupted_one(rival, arguments):
    start = search_with(RIVALS[rival](**arguments)).state()
    whole = search_with(RIVALS[rival](**arguments)).load(start).run(0, 4)
    state, target = whole.state(), whole.objective.target(whole.gates)
    whole.run(4, STEPS)
    resumed = search_with(RIVALS[rival](**arguments)).load(state)
    assert resumed.objective.target(resumed.gates) == target
    resumed.run(4, STEPS)
    for one, other in zip(whole.state()[:2], resumed.state()[:2], strict=True):
        for name, tensor in one.items():
            assert torch.equal(tensor, other[name]), name
    assert torch.equal(whole.kept(), resumed.kept())


@pytest.mark.parametrize("arguments", BUDGETS)
def test_the_expected_cost_is_the_target_at_every_step(arguments):
    search = search_with(gating.ExactBudget(schedule=BudgetSchedule(start=0.0, end=0.8), **arguments))
    gates, objective = search.gates, search.objective
    with torch.no_grad():
        gates.log_alpha.normal_(generator=torch.Generator().manual_seed(0))
    costs = gate_costs(gates, "macs").float()
    for step in range(6):
        objective.update(gates, step / 5)
        expected = float((gates.prob_open().detach() * costs).sum() / costs.sum())
        assert expected == pytest.approx(objective.target(gates), abs=1e-3)
    if "num_heads" in arguments:
        assert gates.expected_open().item() == pytest.approx(5, abs=1e-3)
        assert gates.count_expected("neurons").item() == pytest.approx(68, abs=1e-2)


def test_heads_and_neurons_compete_for_cost():
    search = search_with(gating.ExactBudget(keep=0.5))
    search.objective.update(search.gates, 1.0)
    before = search.gates.prob_open().detach()
    with torch.no_grad():
        search.gates.log_alpha[0] += 2
    after = search.gates.prob_open().detach()
    assert after[0] > before[0]
    assert (after[1:] < before[1:]).all()


def test_uniform_locations_are_means_of_ranks_with_the_gradient_of_each_gate():
    search = search_with(gating.Lagrangian(num_heads=6, uniform=True))
    gates = search.gates
    with torch.no_grad():
        gates.log_alpha.normal_(generator=torch.Generator().manual_seed(1))
    located = gates.constrained_log_alpha()
    heads, own = located[:12].view(3, 4), gates.log_alpha[:12].view(3, 4)
    assert torch.equal(heads.argsort(1), own.argsort(1))
    torch.testing.assert_close(heads.sort(1).values, own.sort(1).values.mean(0).expand(3, 4))
    weights = torch.arange(float(len(located)))
    (located * weights).sum().backward()
    assert torch.equal(gates.log_alpha.grad, weights)


def test_the_choice_of_uniform_layers_is_that_of_the_ranks():
    search = search_with(gating.ExactBudget(num_heads=3, num_neurons=60, uniform=True))
    scores = torch.tensor([0.0, 1, 2, 9, 9, 2, 1, 0, 1, 9, 0, 2] + [3.0, 4, 9] * 3)
    with torch.no_grad():
        search.gates.log_alpha.copy_(scores)
    assert search.kept().nonzero().flatten().tolist() == [3, 4, 9, 13, 16, 19]


@pytest.mark.parametrize("arguments", [{"keep": 0.4}, {"num_heads": 5, "num_neurons": 68}])
def test_the_lagrangian_counts_sparsity_in_cost_or_in_units(arguments):
    search = search_with(gating.Lagrangian(**arguments))
    gates, objective = search.gates, search.objective
    with torch.no_grad():
        gates.log_alpha.copy_(torch.linspace(-3, 3, 21))
        objective.lambda_1.fill_(0.7)
        objective.lambda_2.fill_(3.0)
    objective.update(gates, 1.0)
    p, costs = gates.prob_open().detach(), gate_costs(gates, "macs").float()
    neurons = torch.tensor(gates.counts["neurons"])
    open_shares = [(p * costs).sum() / costs.sum()]
    targets = [0.4]
    if "num_heads" in arguments:
        open_shares, targets = [p[:12].mean(), (p * neurons).sum() / 144], [5 / 12, 68 / 144]
    by_hand = sum(0.7 * (t - s) + 3 * (t - s) ** 2 for s, t in zip(open_shares, targets, strict=True))
    assert objective.penalty(gates).item() == pytest.approx(float(by_hand), rel=1e-4)


def test_a_price_is_that_of_all_cost_or_of_all_neurons():
    gates = gating.inject_gates(build("bert"), units=BOTH, group_size=GROUP)
    with torch.no_grad():
        gates.log_alpha.copy_(torch.linspace(-3, 3, 21))
    p = gates.prob_open().detach()
    for cost in ("macs", "parameters"):
        objective, costs = gating.FixedPrice(price=2.0, cost=cost), gate_costs(gates, cost).float()
        objective.attach(gates)
        objective.update(gates, 1.0)
        by_hand = 2 * (p * costs).sum() / costs.sum()
        assert objective.penalty(gates).item() == pytest.approx(by_hand.item(), rel=1e-5)
    assert objective.kept(gates) is None
    with torch.no_grad():
        gates.log_alpha.fill_(-9.0)[17] = -8.0
    assert objective.kept(gates).nonzero().flatten().tolist() == [17]


def test_costs_are_those_of_the_data_and_of_the_device():
    gates = create_gates(build("bert"), units=BOTH, group_size=GROUP)
    scores = torch.cat([torch.ones(12), torch.zeros(9)])
    free_heads = gating.objectives.HeadBudget(keep=0.5, cost={"heads": 0.0, "neurons": 1.0}).choose(gates, scores)
    assert count(gates, free_heads)[0] == 12
    budget = gating.objectives.HeadBudget(keep=0.5)
    before = count(gates, budget.choose(gates, scores))
    gates.set_macs(torch.where(torch.arange(21) < 12, 100 * gates.macs_per_gate, gates.macs_per_gate))
    assert count(gates, budget.choose(gates, scores))[0] < before[0]


def test_kinds_may_have_shares_beside_neurons():
    gates = create_gates(FAMILIES["bart"].build(), units=BOTH, group_size=8)
    budget = gating.objectives.HeadBudget(keep={"encoder": 0.5, "feed_forward": 0.25})
    parts = budget.parts(gates)
    assert [(part.kind, part.limit) for part in parts] == [
        ("encoder", 4), ("decoder", 12), ("cross", 12), ("feed_forward", 56)
    ]  # fmt: skip
    assert 0 < amount_of(parts, [part.limit for part in parts]) < 1


def test_a_unit_that_is_kept_whole_has_no_closed_gate_at_the_end():
    """Its sigmoids sum to all of them but for rounding: gates that stay are trained until the end."""
    search = search_with(gating.ExactBudget(num_heads=6))
    for loss in [1.0] * 10 + [0.1] * 30:
        search.objective.observe(torch.tensor(loss))
    with torch.no_grad():
        search.gates.log_alpha.normal_(generator=torch.Generator().manual_seed(0))
    for progress in (0.2, 0.5, 0.7, 1.0):
        search.objective.update(search.gates, progress)
    assert search.gates.constraint.sharpness == 1000
    values = search.gates.values()
    assert (values[search.objective.kept(search.gates)] == 1).all()
    assert count(search.gates, values > 0) == (6, 144)


def test_the_share_of_numbers_is_one_of_the_cost_of_the_objective():
    search = search_with(gating.ExactBudget(num_heads=2, num_neurons=96, cost="parameters"))
    search.objective.update(search.gates, 1.0)
    kept = search.objective.kept(search.gates)
    costs = gate_costs(search.gates, "parameters")
    assert search.objective.target(search.gates) == pytest.approx(float(costs[kept].sum() / costs.sum()), abs=1e-3)
