"""The exact knapsacks of the last choice, against every choice by hand."""

import itertools
import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gating.objectives import knapsack
from gating.objectives.knapsack import fill_budget, select_exactly, values_of

# About LLaMA-3-8B: 32 layers of 8 gates of four query heads, and of 224 groups of 64 neurons.
LLAMA_SIZES = [20] * 256 + [3] * 7168


def subsets(num_items):
    return itertools.chain.from_iterable(itertools.combinations(range(num_items), n) for n in range(num_items + 1))


def best_value(values, sizes, fits):
    """Try every choice of items of a size above zero."""
    usable = [index for index, size in enumerate(sizes) if size]
    found = [
        sum(values[usable[index]] for index in chosen)
        for chosen in subsets(len(usable))
        if fits(sum(sizes[usable[index]] for index in chosen))
    ]
    return max(found, default=None)


def total(numbers, chosen):
    return math.fsum(numbers[index] for index in chosen.tolist())


SIZES = st.lists(st.sampled_from([0, 1, 2, 3, 7]), min_size=1, max_size=9)
SCORES = st.integers(-50, 50).map(lambda number: number / 10)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(data=st.data(), sizes=SIZES, factor=st.sampled_from([1, 0.37, 12_345_678]), share=st.floats(0, 1.05))
def test_the_best_affordable_choice_is_found(data, sizes, factor, share):
    scores = torch.tensor(data.draw(st.lists(SCORES, min_size=len(sizes), max_size=len(sizes))))
    sizes = [size * factor for size in sizes]
    budget = share * sum(sizes)
    values = values_of(scores, torch.tensor(sizes, dtype=torch.float64))
    chosen = fill_budget(values, sizes, budget)
    limit = budget * (1 + 1e-11)
    best = best_value(values.tolist(), sizes, lambda size: size <= limit)
    assert total(values, chosen) == pytest.approx(best, rel=1e-9, abs=1e-9)
    used, left = total(sizes, chosen), set(range(len(sizes))) - set(chosen.tolist())
    assert used <= limit
    assert not any(sizes[index] and used + sizes[index] <= budget for index in left)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(data=st.data(), sizes=SIZES)
@pytest.mark.parametrize("by_table", [False, True])
def test_the_best_choice_of_an_exact_total_is_found(by_table, data, sizes):
    assume(any(sizes))
    values = torch.tensor(data.draw(st.lists(SCORES, min_size=len(sizes), max_size=len(sizes))), dtype=torch.float64)
    wanted = sum(size for size in sizes if data.draw(st.booleans()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(knapsack, "_MAX_COMBINATIONS", 0 if by_table else 2**20)
        chosen = select_exactly(values, sizes, wanted)
    assert total(sizes, chosen) == wanted
    assert total(values, chosen) == pytest.approx(best_value(values.tolist(), sizes, lambda size: size == wanted))


@pytest.mark.parametrize("seed", range(8))
def test_dynamic_programming_finds_the_same_choice(seed, monkeypatch):
    generator = torch.Generator().manual_seed(seed)
    sizes = [(3, 5, 8, 20)[int(torch.randint(4, (), generator=generator))] for _ in range(40)]
    values = values_of(torch.randn(40, generator=generator), torch.tensor(sizes))
    by_counts = fill_budget(values, sizes, 0.4 * sum(sizes))
    monkeypatch.setattr(knapsack, "_MAX_COMBINATIONS", 0)
    assert fill_budget(values, sizes, 0.4 * sum(sizes)).tolist() == by_counts.tolist()


@pytest.mark.parametrize("share", [0.05, 0.3, 0.8, 1.0])
def test_rounded_sizes_never_exceed_the_budget_and_leave_no_room(share, monkeypatch):
    generator = torch.Generator().manual_seed(int(100 * share))
    kinds = torch.rand(6, generator=generator, dtype=torch.float64).add(0.1).tolist()
    sizes = [kinds[index % 6] for index in range(600)]
    values = values_of(torch.randn(600, generator=generator), torch.tensor(sizes))
    budget = share * sum(sizes)
    monkeypatch.setattr(knapsack, "_MAX_COMBINATIONS", 0)
    chosen = fill_budget(values, sizes, budget)
    used, left = total(sizes, chosen), set(range(600)) - set(chosen.tolist())
    assert used <= budget * (1 + 1e-11)
    assert all(used + sizes[index] > budget for index in left)
    # The fractional choice, which is never worse: items by value per size, the last one in part.
    order = (values / torch.tensor(sizes)).argsort(descending=True).tolist()
    sums = torch.tensor([sizes[index] for index in order]).cumsum(0)
    bound = float((values[order] * (sums <= budget)).sum()) + float(values.max())
    assert total(values, chosen) <= bound
    assert total(values, chosen) >= bound - 2 * float(values.max())


@pytest.mark.parametrize("uneven", [False, True])
def test_gates_of_a_large_model_fill_their_budget(uneven):
    sizes = LLAMA_SIZES[:-32] + [1.3125] * 32 if uneven else LLAMA_SIZES
    scores = torch.randn(len(sizes), generator=torch.Generator().manual_seed(0))
    chosen = fill_budget(values_of(scores, torch.tensor(sizes)), sizes, 0.3 * sum(sizes))
    used = total(sizes, chosen)
    assert 0.3 * sum(sizes) - 1.3125 < used <= 0.3 * sum(sizes)
    # Nearly all gates above the last one that was kept.
    kept = torch.zeros(len(sizes), dtype=torch.bool).index_fill(0, chosen, True)
    assert (~kept & (scores > scores[kept].sort().values[10])).sum() <= 10


def test_groups_of_neurons_with_smaller_last_ones_meet_their_number():
    sizes = ([64] * 223 + [28]) * 32
    scores = torch.randn(len(sizes), generator=torch.Generator().manual_seed(1)).double()
    wanted = 64 * 1500 + 28 * 7
    chosen = select_exactly(scores * torch.tensor(sizes), sizes, wanted)
    assert total(sizes, chosen) == wanted


def test_equal_scores_fill_the_budget():
    chosen = fill_budget(values_of(torch.zeros(5), torch.tensor([3.0, 3.0, 2.0, 2.0, 2.0])), [3, 3, 2, 2, 2], 7)
    assert total([3, 3, 2, 2, 2], chosen) == 7


@pytest.mark.parametrize("share", [0.1, 0.3, 0.7, 1.0])
def test_shares_that_are_rounded_hold_their_items(share):
    # 0.1 * 3 and 0.7 * 10 are not exact in binary numbers.
    sizes = [0.1] * 10
    assert len(fill_budget(torch.ones(10), sizes, share * math.fsum(sizes))) == round(share * 10)


def test_a_budget_below_every_size_selects_no_item():
    assert fill_budget(torch.ones(3), [2, 3, 2], 1.5).tolist() == []
    assert fill_budget(torch.ones(2), [0, 0], 5).tolist() == []
