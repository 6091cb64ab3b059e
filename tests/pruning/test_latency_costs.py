"""Latency costs of heads and neurons, and the gates that reach a speedup."""

import copy

import pytest
import torch

import gating
from gating.errors import InputError
from gating.gates import create_gates
from gating.pruning import latency
from gating.pruning.latency import CopyTimer, LatencyComparison
from gating.pruning.latency_costs import LatencyCosts, kept_for_speedup, measure_latency_costs
from gating.pruning.prune import remove_in_copy
from gating.structure.layers import count_layers
from tests.support.family_models import FAMILIES
from tests.support.timers import KnownTimes, timer_of
from tests.support.tiny_models import batch_for, state_of

UNITS = ["heads", "neurons"]


def relative_time(gates, kept, *, heads, neurons, open_heads=0.0, open_neurons=0.0):
    """Return the time of a model whose latency is linear in the kept units and in the blocks that are open."""
    is_neuron = torch.tensor(gates.counts["neurons"]) > 0
    is_open = torch.tensor([bool(part.any()) for part in kept.split(gates.block_sizes)])
    of_neurons = torch.tensor([unit == "neurons" for unit in gates.block_units])
    removed = [kept[~is_neuron], kept[is_neuron], is_open[~of_neurons], is_open[of_neurons]]
    prices = (heads, neurons, open_heads, open_neurons)
    return 1 - sum(
        price * float(1 - part.double().mean()) for price, part in zip(prices, removed, strict=True) if price
    )


TIMES = {"heads": 0.3, "neurons": 0.4, "open_heads": 0.12, "open_neurons": 0.06}


def test_latencies_of_units_and_open_blocks_are_found(bert):
    gates = create_gates(bert, units=UNITS, group_size=4)
    speedup = lambda kept: 1 / relative_time(gates, kept, **TIMES)  # noqa: E731
    costs = measure_latency_costs(gates, KnownTimes(speedup))
    assert (*costs.shares.values(), *costs.blocks.values()) == pytest.approx((*TIMES.values(),))
    assert costs.fixed == pytest.approx(0.12)


def test_units_that_cost_nothing_have_no_negative_cost(bert):
    gates = create_gates(bert, units=UNITS, group_size=4)
    speedup = lambda kept: float(1 / relative_time(gates, kept, heads=-0.1, neurons=0.5))  # noqa: E731
    costs = measure_latency_costs(gates, KnownTimes(speedup))
    assert costs.shares["heads"] == 0
    assert costs.shares["neurons"] > 0.3


def test_timings_that_are_noise_are_called_so(bert):
    gates = create_gates(bert)
    costs = LatencyCosts(shares={"heads": 0.0}, fixed=1.0, fastest=1.0, error=0.3)
    with pytest.raises(InputError, match=r"noise \(± 30.0 %\)"):
        costs.keep_for(1.1, gates)


@pytest.mark.parametrize("units", [["neurons"], UNITS])
def test_timings_leave_the_model_as_it_was(bert, units, monkeypatch):
    def by_size(model, batch, time_pass=latency.time_pass):
        time_pass(model, batch)  # whose own noise is larger than what a few small matrices take
        return sum(parameter.numel() for parameter in model.parameters())

    monkeypatch.setattr(latency, "time_pass", by_size)
    state, text = state_of(bert), str(bert)
    gates = create_gates(bert, units=units, group_size=8)
    costs = measure_latency_costs(gates, timer_of(bert, batch_for(bert), repeats=2, seconds=1e9))
    assert costs.fastest >= 1
    assert set(costs.rates(gates)) == {*units}
    assert str(bert) == text
    assert all(torch.equal(tensor, bert.state_dict()[name]) for name, tensor in state.items())


def test_the_fastest_speedup_keeps_a_gate(bert):
    gates = create_gates(bert)
    costs = LatencyCosts({"heads": 0.3}, fixed=0.3, fastest=3.0, blocks={"heads": 0.4})
    keep, cost = costs.keep_for(2.9, gates), costs.rates(gates)
    assert gating.ExactBudget(keep=keep, cost=cost).kept(gates).sum() == 1


@pytest.mark.parametrize(
    ("time", "share"), [(1.0, 1.0), (0.5, (0.5 - 0.3) / 0.7), (0.335, 0.05), (0.2, 0.08 / (0.7 + 0.18 / 0.05))]
)
def test_blocks_are_expected_to_stay_open_until_little_is_left(bert, time, share):
    costs = LatencyCosts(
        {"heads": 0.3, "neurons": 0.4}, fixed=0.12, fastest=8.0, blocks={"heads": 0.12, "neurons": 0.06}
    )
    gates = create_gates(bert, units=UNITS, group_size=4)
    assert costs.keep_for(1 / time, gates) == pytest.approx(share, abs=1e-4)


@pytest.mark.parametrize("wanted", [1.2, 1.5, 2.0, 3.0])
def test_the_choice_is_moved_until_it_has_the_speedup(wanted):
    # Far from linear: half of the units take a tenth of the time.
    curve = lambda kept: float(1 / (0.2 + 0.8 * kept.double().mean() ** 3))  # noqa: E731
    choose = lambda share: torch.arange(500) < share * 500  # noqa: E731
    kept = kept_for_speedup(choose, lambda kept: (curve(kept), 0.0, False), speedup=wanted, keep=0.5)
    assert curve(kept) == pytest.approx(wanted, rel=0.05)


def test_a_speedup_that_no_choice_has_is_warned_about():
    kept = None
    with pytest.warns(UserWarning, match="1.22 times"):
        kept = kept_for_speedup(
            lambda share: torch.arange(10) < share * 10,
            lambda kept: (float(1 / (0.8 + 0.2 * kept.double().mean())), 0.0, False),
            speedup=3.0,
            keep=0.3,
        )
    assert kept.sum() <= 1


def test_a_compact_copy_is_timed_beside_the_model(bert):
    gates = gating.inject_gates(bert, units=UNITS, group_size=8)
    kept = torch.rand(len(gates.log_alpha)) > 0.5
    before = copy.deepcopy(state_of(bert))
    with gates.detached() as model:
        assert not hasattr(model, "head_gates")
        timer = timer_of(model, batch_for(bert), repeats=2)
        assert timer.time_kept(gates, kept, share=1.0).speedup > 0
    assert bert.head_gates is gates
    assert all(torch.equal(before[name], tensor) for name, tensor in state_of(bert).items())


@pytest.mark.parametrize(("units", "speedup"), [("heads", 1.2), (UNITS, 1.5), ("neurons", 1.2)])
def test_the_budget_for_a_speedup_reaches_it_and_is_printed(bert, monkeypatch, capsys, units, speedup):
    bert = bert.base_model

    def time(timer, compact, **_):
        sizes = [sum(part.numel() for part in model.encoder.parameters()) for model in (bert, compact)]
        timer.timed.append(LatencyComparison(*sizes, 3, "1 x 1", 0.0))
        return timer.timed[-1]

    monkeypatch.setattr(CopyTimer, "time", time)
    objective = gating.budget_for_speedup(bert, batch_for(bert), speedup=speedup, units=units, group_size=4)
    gates = create_gates(bert, units=units, group_size=4)
    gates.log_alpha.data = torch.rand(len(gates.log_alpha), generator=torch.Generator().manual_seed(0))
    call = capsys.readouterr().out.partition(": ")[2]
    assert repr(eval(call, {"ExactBudget": gating.ExactBudget})) == repr(objective)
    compact = remove_in_copy(bert, gates, objective.kept(gates))
    assert timer_of(bert, batch_for(bert)).time(compact).speedup == pytest.approx(speedup, rel=0.05)


@pytest.mark.parametrize("speedup", [1.8, 2.0])
def test_a_budget_that_is_not_timed_again_counts_the_blocks_that_stay(bert, monkeypatch, speedup):
    gates = create_gates(bert, units=UNITS, group_size=4)
    known = KnownTimes(lambda kept: 1 / relative_time(gates, kept, **TIMES))
    monkeypatch.setattr("gating.pruning.latency_costs.CopyTimer", lambda *_, **__: known)
    objective = gating.budget_for_speedup(bert, batch_for(bert), speedup=speedup, units=UNITS, group_size=4)
    for values in gates.log_alpha.data.split(gates.block_sizes):
        # Something stays in every block.
        values.copy_(torch.linspace(1, 0, len(values)))
    reached = 1 / relative_time(gates, objective.kept(gates), **TIMES)
    assert reached == pytest.approx(speedup, rel=0.05)


def test_heads_without_a_gate_stay_and_do_not_count(bert):
    gates = create_gates(bert, exclude=["encoder.layer.0.attention.self"])
    sizes = []
    timer = KnownTimes(lambda kept: sizes.append(len(kept)) or 1.0)
    measure_latency_costs(gates, timer)
    assert set(sizes) == {8}


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_layers_that_finalize_would_take_out_are_not_timed(name, monkeypatch):
    model = FAMILIES[name].build()
    gates, timed, before = create_gates(model, units=UNITS, group_size=8), [], state_of(model)
    kept = torch.cat([torch.full((size,), block.layer_idx == 0) for block, size in _sized(gates, model)])
    num_layers = count_layers(model)
    monkeypatch.setattr(CopyTimer, "time", lambda _, compact, **__: timed.append(compact))
    timer_of(model, batch_for(model)).time_kept(gates, kept, share=1.0)
    # Norms of a BERT come last, and compute in empty layers.
    assert (count_layers(timed[0]), count_layers(model)) == (num_layers if name == "bert" else 1, num_layers)
    timed[0](**batch_for(model))
    assert all(torch.equal(before[name], tensor) for name, tensor in state_of(model).items())


def _sized(gates, model):
    return zip(gates.blocks(model), gates.block_sizes, strict=True)
