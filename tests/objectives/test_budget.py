"""The number and the choice of kept heads, with a minimum for every layer."""

import itertools

import pytest
import torch

import gating
from gating.objectives import HeadBudget
from gating.objectives.choose import choose
from gating.objectives.parts import Part
from tests.support.family_models import FAMILIES


@pytest.fixture
def llama_gates():
    """Three layers of eight query heads in four groups: gates of two heads."""
    return gating.inject_gates(FAMILIES["llama"].build())


def best_by_hand(scores, heads_per_gate, num_heads, block_sizes, min_per_layer):
    """Try every choice of gates."""
    blocks = torch.repeat_interleave(torch.arange(len(block_sizes)), torch.tensor(block_sizes)).tolist()
    best, found = None, None
    for size in range(len(scores) + 1):
        for choice in itertools.combinations([g for g, heads in enumerate(heads_per_gate) if heads], size):
            per_block = [sum(heads_per_gate[g] for g in choice if blocks[g] == b) for b in range(len(block_sizes))]
            if sum(per_block) == num_heads and min(per_block) >= min_per_layer:
                value = sum(scores[g] * heads_per_gate[g] for g in choice)
                if best is None or value > best:
                    best, found = value, sorted(choice)
    return found


LAYOUTS = [((1,) * 6, (2, 4)), ((2,) * 6, (3, 3)), ((2, 2, 1, 1, 2, 1), (3, 3)), ((1, 3, 0, 2, 1, 2), (2, 2, 2))]


def part_of(heads_per_gate, block_sizes, min_per_layer, number):
    layers = tuple(layer for layer, size in enumerate(block_sizes) for _ in range(size))
    least = (min_per_layer,) * len(block_sizes)
    gates = tuple(range(len(heads_per_gate)))
    return Part("heads", None, gates, heads_per_gate, number, heads_per_gate, layers, least)


@pytest.mark.parametrize(("heads_per_gate", "block_sizes"), LAYOUTS)
@pytest.mark.parametrize("min_per_layer", [0, 1, 2])
def test_each_number_that_can_be_met_is_met_by_the_best_gates(heads_per_gate, block_sizes, min_per_layer):
    sizes = torch.tensor(heads_per_gate)
    for seed, num_heads in itertools.product(range(3), range(1, sum(heads_per_gate) + 1)):
        scores = torch.randn(6, generator=torch.Generator().manual_seed(seed))
        expected = best_by_hand(scores.tolist(), heads_per_gate, num_heads, block_sizes, min_per_layer)
        part = part_of(heads_per_gate, block_sizes, min_per_layer, num_heads)
        assert part.can_keep(num_heads) == (expected is not None)
        if expected is None:
            assert part.nearest(num_heads) != num_heads
            continue
        kept = part.choose(scores)
        assert part.nearest(num_heads) == num_heads >= part.smallest
        assert (sizes * kept).sum() == num_heads
        assert all((sizes * kept)[range(start, start + size)].sum() >= min_per_layer for start, size in zip(
            itertools.accumulate(block_sizes, initial=0), block_sizes, strict=False
        ))  # fmt: skip
        if len(set(heads_per_gate)) == 1:
            assert kept.nonzero().flatten().tolist() == expected


@pytest.mark.parametrize("seed", range(20))
def test_a_share_of_cost_is_filled_and_near_the_bound(seed):
    """The fractional knapsack is a bound: the choice gives away at most the value of one gate."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.tensor([3.0, 2.0], dtype=torch.float64)[torch.randint(2, (200,), generator=generator)] / 500
    scores = torch.rand(200, generator=generator, dtype=torch.float64)
    limit = 0.1 + 0.03 * seed
    taken = choose(scores, sizes.tolist(), limit, [0] * 200, [0], [1] * 200, is_met=False)
    kept = torch.zeros(200, dtype=torch.bool).index_fill(0, torch.tensor(taken), True)
    used, others = sizes[kept].sum(), sizes[~kept]
    assert used <= limit * (1 + 1e-9)
    assert (used + others > limit).all()
    order = scores.argsort(descending=True)
    room = (limit - sizes[order].cumsum(0) + sizes[order]).clamp_min(0)
    bound = (scores[order] * torch.minimum(room, sizes[order])).sum()
    assert (scores * sizes)[kept].sum() >= 0.98 * bound


@pytest.mark.parametrize("seed", range(20))
def test_minima_of_a_share_of_cost_hold_whatever_the_order(seed):
    """Groups of four heads and single ones: the best group of one layer must leave room for those of the others."""
    units, layers = (4, 1, 1) * 3, (0, 0, 0, 1, 1, 1, 2, 2, 2)
    sizes = tuple(number / 18 for number in units)
    part = Part("cost", None, tuple(range(9)), sizes, 0.4, units, layers, (2, 2, 2))
    assert part.smallest == pytest.approx(6 / 18)
    kept = part.choose(torch.randn(9, generator=torch.Generator().manual_seed(seed)))
    assert (torch.tensor(units) * kept).view(3, 3).sum(dim=1).min() >= 2
    assert torch.tensor(sizes)[kept].sum() <= 0.4 + 1e-6


def test_the_best_heads_of_every_layer_come_first(gates):
    scores = torch.arange(12.0)
    kept = HeadBudget(num_heads=5, min_per_layer=1).choose(gates, scores)
    assert kept.nonzero().flatten().tolist() == [3, 7, 9, 10, 11]
    assert HeadBudget(num_heads=5).choose(gates, scores).nonzero().flatten().tolist() == [7, 8, 9, 10, 11]


def test_a_minimum_of_heads_takes_whole_groups(llama_gates):
    budget = HeadBudget(num_heads=14, min_per_layer=3)
    kept = budget.choose(llama_gates, torch.arange(12.0))
    assert kept.view(3, 4).sum(dim=1).tolist() == [2, 2, 3]
    with pytest.raises(ValueError, match="min_per_layer=3"):
        HeadBudget(num_heads=10, min_per_layer=3).parts(llama_gates)


def test_a_choice_of_another_number(gates):
    (part,) = HeadBudget(num_heads=2).parts(gates)
    assert part.choose(torch.arange(12.0), 7).sum() == 7


def test_a_share_is_rounded_to_whole_groups_of_heads(llama_gates):
    assert HeadBudget(keep=0.38).parts(llama_gates)[0].limit in (8, 10)
    assert HeadBudget().parts(llama_gates)[0].limit == 6
    (part,) = HeadBudget(num_heads=4).parts(llama_gates)
    assert part.nearest(16.9) in (16, 18)
