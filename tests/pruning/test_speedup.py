"""The number of heads that reaches a speedup."""

import copy
from contextlib import suppress

import pytest
import torch

import gating
from gating.gates import create_gates
from gating.pruning.latency.speedup import _keep_evenly, num_heads_for_speedup
from gating.pruning.measure import count_heads
from gating.pruning.prune import remove_in_copy
from tests.support.family_models import FAMILIES
from tests.support.timers import KnownTimes, timer_of
from tests.support.tiny_models import batch_for, state_of


def line(total, *, least=2.0):
    """Return the speed-up by number of heads of a model whose time is linear in its heads."""
    return lambda num_heads: 1 / (1 / least + (1 - 1 / least) * num_heads / total)


def timer_for(gates, speedup_of):
    """Return a timer with a speed-up by number of heads."""
    sizes = torch.tensor(gates.units_per_gate)
    return KnownTimes(lambda kept: speedup_of(int(sizes[kept].sum())))


def found_number(model, *, speedup, speedup_of):
    gates = create_gates(model)
    return num_heads_for_speedup(gates, timer_for(gates, speedup_of), speedup=speedup)


@pytest.mark.parametrize(("speedup", "expected"), [(1.2, 8), (1.5, 4), (1.01, 11), (1.8, 1)])
def test_the_largest_number_that_reaches_the_speedup_is_returned(bert, speedup, expected):
    found = found_number(bert, speedup=speedup, speedup_of=line(12))
    assert found == expected
    assert line(12)(found) >= speedup > line(12)(found + 1)


def test_a_nonlinear_curve_is_followed_down(bert):
    # Slower than interpolated between the first points.
    curve = {1: 1.6, 3: 1.5, 6: 1.2, 9: 1.1}
    found = found_number(bert, speedup=1.45, speedup_of=lambda n: curve.get(n, 1.0 if n > 3 else 1.5))
    assert found == 3


def test_an_unreachable_speedup_is_refused_with_the_best_one(bert):
    with pytest.raises(ValueError, match=r"speedup=3.0 cannot be reached.*1 of 12 heads.*1.85 times"):
        found_number(bert, speedup=3.0, speedup_of=line(12))
    with pytest.raises(ValueError, match="above 1"):
        found_number(bert, speedup=1.0, speedup_of=line(12))


def test_groups_of_query_heads_stay_whole():
    model = FAMILIES["llama"].build()
    size = max(gating.inject_gates(model).heads_per_gate)
    model.head_gates.remove()
    assert size > 1
    total = count_heads(model)
    found = found_number(model, speedup=1.3, speedup_of=line(total))
    assert found % size == 0
    assert line(total)(found) >= 1.3


@pytest.mark.parametrize("num_heads", [1, 5, 12])
def test_heads_are_removed_evenly(bert, num_heads):
    gates = create_gates(bert)
    compact = remove_in_copy(bert, gates, _keep_evenly(gates, num_heads))
    counts = [block.num_heads for block in gating.find_attention_blocks(compact)]
    assert sum(counts) == num_heads
    assert max(counts) - min(counts) <= 1


@pytest.mark.runs
def test_real_times_change_nothing_in_the_model(bert):
    state, text = state_of(bert), str(bert)
    twin = copy.deepcopy(bert)
    # A tiny model may not become faster at all.
    with suppress(ValueError):
        timer = timer_of(bert, batch_for(bert))
        assert 1 <= num_heads_for_speedup(create_gates(bert), timer, speedup=1.0001) <= 12
    assert str(bert) == text
    for name, tensor in state.items():
        assert torch.equal(tensor, bert.state_dict()[name])
    assert type(bert) is type(twin)


def test_heads_without_a_gate_stay_and_do_not_count(bert):
    gates = gating.inject_gates(bert, exclude=["encoder.layer.0.attention.self"])
    gates.remove()
    found = num_heads_for_speedup(gates, timer_for(gates, line(gates.num_heads)), speedup=1.2)
    assert found == 5
    assert gates.num_heads == 8
    compact = remove_in_copy(bert, gates, _keep_evenly(gates, 2))
    assert [block.num_heads for block in gating.find_attention_blocks(compact)] == [4, 1, 1]
