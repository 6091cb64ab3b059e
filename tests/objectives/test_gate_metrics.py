"""Metrics of gates on heads, on neurons and on both."""

import math

import pytest
import torch

import gating
from gating.objectives.gate_metrics import gate_metrics, metrics_of, quantity_of
from gating.report.results import History
from gating.training.callbacks import log_kept_heads
from gating.training.progress import describe_open, describe_progress
from tests.support.family_models import FAMILIES


class Objective(gating.FixedPrice):
    """An objective that aims at a given number."""

    def __init__(self, target=math.nan, cost="macs"):
        super().__init__(price=0.0, cost=cost)
        self.number = target

    def target(self, gates):
        return self.number


def opened(model, open_blocks, *, units, group_size=8):
    """Return gates that are closed but for the first few of each block, given by its index."""
    gates = gating.inject_gates(model, units=units, group_size=group_size)
    with torch.no_grad():
        gates.log_alpha.fill_(-9)
        first = 0
        for index, size in enumerate(gates.block_sizes):
            gates.log_alpha[first : first + open_blocks.get(index, 0)] = 9
            first += size
    return gates


def test_names_and_order_of_heads_alone(bert):
    metrics = gate_metrics(opened(bert, {0: 3, 2: 1}, units="heads"), Objective(4))
    layers = [f"gates/layer_{index:02d}/open" for index in range(3)]
    assert list(metrics) == ["gates/expected_open", "gates/open", "gates/target", "gates/undecided", *layers]
    assert [metrics[name] for name in ("gates/open", "gates/target", *layers)] == [4, 4, 3, 0, 1]


def test_neurons_alone_have_names_of_their_own(bert):
    metrics = gate_metrics(opened(bert, {0: 2, 2: 6}, units="neurons"), Objective(64))
    blocks = [f"gates/feed_forward_{index:02d}/open" for index in range(3)]
    assert sorted(metrics) == sorted(
        ["gates/neurons/expected", "gates/neurons/open", "gates/neurons/target", "gates/undecided", *blocks]
    )
    assert [metrics[name] for name in ("gates/neurons/open", "gates/neurons/target", *blocks)] == [64, 64, 16, 0, 48]
    assert float(metrics["gates/neurons/expected"]) == pytest.approx(64, abs=0.1)


def test_both_have_shares_of_the_cost(bert):
    gates = opened(bert, {0: 4, 1: 2, 3: 1, 5: 6}, units=("heads", "neurons"))
    metrics = gate_metrics(gates, Objective(0.5))
    assert "gates/target" not in metrics
    assert metrics["gates/cost/target"] == 0.5
    assert metrics["gates/open"] == 6
    assert metrics["gates/neurons/open"] == 56
    assert [metrics[f"gates/layer_{index:02d}/open"] for index in range(3)] == [4, 2, 0]
    assert [metrics[f"gates/feed_forward_{index:02d}/open"] for index in range(3)] == [8, 0, 48]
    costs = gates.macs_per_gate
    assert metrics["gates/cost/heads"] == pytest.approx(float(6 * costs[0] / costs.sum()))
    assert metrics["gates/cost/neurons"] == pytest.approx(float(7 * costs[-1] / costs.sum()))
    assert metrics["gates/cost/open"] == metrics["gates/cost/heads"] + metrics["gates/cost/neurons"]
    assert metrics["gates/cost/expected"] == pytest.approx(metrics["gates/cost/open"], abs=1e-3)


def test_all_gates_cost_everything(bert):
    gates = gating.inject_gates(bert, units=("heads", "neurons"))
    metrics = gate_metrics(gates, Objective())
    assert metrics["gates/cost/open"] == pytest.approx(1)
    assert min(metrics["gates/cost/heads"], metrics["gates/cost/neurons"]) > 0


@pytest.mark.parametrize("cost", ["parameters", {"heads": 3.0, "neurons": 1.0}])
def test_costs_are_those_of_the_objective(bert, cost):
    gates = opened(bert, {0: 4}, units=("heads", "neurons"))
    numbers = gates.parameters_per_gate if cost == "parameters" else gates.macs_per_gate
    rates = torch.tensor([3.0 if heads and cost != "parameters" else 1.0 for heads in gates.counts["heads"]])
    costs = numbers * rates
    metrics = gate_metrics(gates, Objective(cost=cost))
    assert metrics["gates/cost/heads"] == pytest.approx(float(costs[:4].sum() / costs.sum()))
    assert metrics["gates/cost/neurons"] == 0


def test_kinds_of_attention_have_no_feed_forward_among_them():
    model = FAMILIES["t5"].build()
    gates = gating.inject_gates(model, units=("heads", "neurons"), group_size=8)
    metrics = gate_metrics(gates, Objective())
    kinds = {name for name in metrics if name.count("/") == 2 and name.split("/")[1] in set(gates.block_kinds)}
    assert kinds == {"gates/encoder/open", "gates/decoder/open", "gates/cross/open"}
    assert sum(metrics[name] for name in kinds) == metrics["gates/open"] == 36


class Logger:
    def __init__(self):
        self.metrics = {}

    def log_metrics(self, metrics, step):
        self.metrics |= metrics

    def save(self):
        pass


def test_the_last_row_has_the_kept_units(bert):
    gates, logger = opened(bert, {}, units=("heads", "neurons")), Logger()
    search = gating.Search(gates, Objective())
    kept = torch.zeros_like(gates.log_alpha, dtype=torch.bool)
    kept[[0, 1, -1]] = True
    history = History()
    log_kept_heads([logger], history, search, kept=kept, step=3)
    assert (logger.metrics["gates/open"], logger.metrics["gates/neurons/open"]) == (2, 8)
    assert history.quantity == "cost"
    assert history.spent == {unit: logger.metrics[f"gates/cost/{unit}"] for unit in ("heads", "neurons")}


@pytest.mark.parametrize(
    ("units", "amounts", "open_units", "progress"),
    [
        ("heads", (6, 6), "6 of 12 heads", "heads 6."),
        ("neurons", (48, 48), "48 of 144 neurons", "neurons 48."),
        (("heads", "neurons"), None, "6 of 12 heads and 0 of 144 neurons", "cost "),
    ],
)
def test_amounts_are_described_by_their_quantity(bert, units, amounts, open_units, progress):
    gates = opened(bert, {0: 4, 1: 2}, units=units)
    metrics = gate_metrics(gates, Objective())
    found = [float(metrics[name]) for name in metrics_of(quantity_of(gates, Objective()))]
    assert found[0] == pytest.approx(found[1], rel=0.01)
    assert amounts is None or found[1] == amounts[1]
    assert describe_open(gates) == open_units
    assert describe_progress(gates, Objective(4)).startswith(progress)
    assert "→" not in describe_progress(gates, Objective())
    if amounts is not None:
        assert describe_progress(gates, Objective(4)).endswith(" → 4")
    else:
        assert describe_progress(gates, Objective(0.25)).endswith("% → 25.0%")
