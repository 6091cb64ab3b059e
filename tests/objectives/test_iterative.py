"""Rounds that close heads by a ranking."""

import itertools

import pytest
import torch

import gating
from gating.objectives import RandomOrder, Ranking
from tests.support.family_models import FAMILIES

SCHEDULE = gating.BudgetSchedule(start=0.2, end=0.8)


class Ascending(Ranking):
    """A ranking in the order of the gates that counts the calls of start_over."""

    def __init__(self):
        super().__init__()
        self.starts = 0

    def scores(self, gates, sizes=None):
        return torch.arange(float(gates.log_alpha.numel()))

    def start_over(self, gates):
        self.starts += 1


def follow(objective, gates, steps=60):
    """Return the number of open heads after each update."""
    counts = []
    for step in range(steps + 1):
        objective.update(gates, step / steps)
        assert objective.target(gates) == gates.num_open() == gates.expected_open()
        counts.append(gates.num_open())
    return counts


@pytest.mark.parametrize(
    ("share", "rounds"),
    [(0.25, [12, 9, 6, 3, 2]), (0.1, list(range(12, 1, -1))), (1.0, [12, 2]), (0.5, [12, 6, 2])],
)
def test_each_round_closes_the_same_share_and_the_last_the_rest(gates, share, rounds):
    objective = gating.IterativePruning(Ascending(), num_heads=2, share_per_round=share, schedule=SCHEDULE)
    objective.attach(gates)
    counts = follow(objective, gates)
    assert [count for count, _ in itertools.groupby(counts)] == rounds
    assert set(counts[:12]) == {12}
    assert set(counts[48:]) == {2}
    assert gates.values().nonzero().flatten().tolist() == [10, 11]


def test_the_lowest_ranks_close_first_and_stay_closed(gates):
    objective = gating.IterativePruning(Ascending(), num_heads=4, schedule=SCHEDULE)
    objective.attach(gates)
    objective.update(gates, 0.5)
    assert gates.values().tolist() == [0.0] * 4 + [1.0] * 8
    objective.ranking.scores = lambda gates, sizes: -torch.arange(12.0)  # The reverse order.
    objective.update(gates, 1.0)
    assert gates.values().nonzero().flatten().tolist() == [4, 5, 6, 7]


def test_a_larger_budget_opens_the_gates_again_that_closed_last(gates):
    schedule = gating.BudgetSchedule(start=0.0, end=1.0)
    objective = gating.IterativePruning(Ascending(), num_heads=3, share_per_round=0.25, schedule=schedule)
    objective.attach(gates)
    for progress in (0.0, 0.4, 0.7):
        objective.update(gates, progress)
    starts, objective.ranking.scores = objective.ranking.starts, lambda gates, sizes: -torch.arange(12.0)
    objective.update(gates, 1.0)
    assert gates.values().nonzero().flatten().tolist() == [6, 7, 8]
    assert objective.ranking.starts == starts, "the statistics of the last round are those of other budgets"
    kept = [objective.kept_at(gates, number / 12).nonzero().flatten().tolist() for number in (2, 5, 7, 10)]
    assert kept == [[6, 7], [6, 7, 8, 9, 10], [3, 6, 7, 8, 9, 10, 11], [0, 3, 4, 5, 6, 7, 8, 9, 10, 11]]
    assert torch.equal(objective.kept(gates), gates.values() > 0)


def test_rankings_start_over_until_the_descent_begins_and_after_every_round(gates):
    objective = gating.IterativePruning(Ascending(), num_heads=6, share_per_round=0.25, schedule=SCHEDULE)
    objective.attach(gates)
    for progress, starts in ((0.0, 1), (0.2, 2), (0.3, 2), (0.5, 3), (0.6, 3), (0.8, 4), (1.0, 4)):
        objective.update(gates, progress)
        assert objective.ranking.starts == starts, progress


def test_all_at_once_ranks_by_everything_before(gates):
    at_once = gating.BudgetSchedule(start=0.5, end=0.5)
    objective = gating.IterativePruning(Ascending(), num_heads=6, schedule=at_once)
    objective.attach(gates)
    objective.update(gates, 0.4)
    assert objective.ranking.starts == 0
    objective.update(gates, 0.5)
    assert gates.num_open() == 6


def test_kept_heads_are_known_before_the_search(gates):
    objective = gating.IterativePruning(Ascending(), num_heads=3, schedule=SCHEDULE)
    objective.attach(gates)
    assert objective.kept(gates).nonzero().flatten().tolist() == [9, 10, 11]


def test_every_layer_keeps_its_minimum_in_every_round(gates):
    objective = gating.IterativePruning(Ascending(), num_heads=5, min_per_layer=1, schedule=SCHEDULE)
    objective.attach(gates)
    for step in range(61):
        objective.update(gates, step / 60)
        assert min(gates.open_by_block().values()) >= 1
    assert list(gates.open_by_block().values()) == [1, 1, 3]


@pytest.mark.parametrize("seed", range(6))
def test_gates_of_different_sizes_meet_every_number(seed):
    """A small gate that has closed may have to open again at the end."""
    model = FAMILIES["llama"].build()
    gating.prune_heads(model, {0: [1, 2, 3], 1: [0, 1, 2]})
    gates = gating.inject_gates(model)
    assert len(set(gates.counts["heads"])) > 1
    for num_heads in (1, 4, 7, 12):
        objective = gating.IterativePruning(RandomOrder(seed=seed), num_heads=num_heads, schedule=SCHEDULE)
        objective.attach(gates)
        counts = follow(objective, gates, steps=20)
        assert counts[-1] == num_heads
        assert all(earlier >= later for earlier, later in itertools.pairwise(counts))


def test_chance_depends_on_the_seed_alone(gates):
    orders = [RandomOrder(seed=seed).scores(gates).argsort().tolist() for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]


def test_processes_that_saw_different_batches_close_the_same_heads(gates, monkeypatch):
    """Another process ranks the other way round, and more strongly."""
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.all_reduce", lambda scores: scores.add_(-3 * torch.arange(12.0)))
    objective = gating.IterativePruning(Ascending(), num_heads=3, schedule=SCHEDULE)
    objective.attach(gates)
    objective.update(gates, 1.0)
    assert gates.values().nonzero().flatten().tolist() == [0, 1, 2]
    assert torch.equal(objective.kept(gates), gates.values() > 0)


def test_values_do_not_depend_on_log_alpha(gates):
    objective = gating.IterativePruning(Ascending(), num_heads=3)
    objective.attach(gates)
    with torch.no_grad():
        gates.log_alpha.fill_(-9.0)
    assert gates.num_open() == 12
    assert not gates.sample().requires_grad
    assert objective.penalty(gates).item() == 0
