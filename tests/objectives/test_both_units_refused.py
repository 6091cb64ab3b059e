"""Budgets over gates of heads and of neurons that do not fit, refused before the gates change."""

import pytest

import gating
from gating.gates import create_gates
from tests.support.search import RIVALS, build_bert_on_meta
from tests.support.tiny_models import build

BOTH = ("heads", "neurons")
# Three layers of 4 heads and of 48 neurons; groups of 20 leave a last one of 8.
GROUP = 20


@pytest.mark.parametrize(
    ("units", "arguments", "message"),
    [
        (("heads",), {"num_neurons": 20}, "num_neurons=20 cannot be kept: the gates are those of heads"),
        (("neurons",), {"num_heads": 2}, "num_heads=2 cannot be kept: the gates are those of neurons"),
        (("neurons",), {"min_per_layer": 1}, "min_per_layer=1 is a number of heads, and the gates are of neurons"),
        (("neurons",), {"keep": 2}, "keep=2 is not a share of neurons"),
        (BOTH, {"num_neurons": 30}, r"num_neurons=30 .* up to 20 neurons.* 28 or 36"),
        (
            BOTH,
            {"num_neurons": 145},
            "num_neurons=145 cannot be kept: this model has 144 neurons, so give an integer from 1 to 144",
        ),
        (BOTH, {"num_neurons": 20, "keep": 0.5}, "either num_neurons or keep: got num_neurons=20 and keep=0.5"),
        (BOTH, {"keep": 1.5}, "keep=1.5 is not a share of the cost"),
        (BOTH, {"keep": 0.001}, r"keep=0\.001 of the cost holds no gate: the smallest takes 0\.0\d+"),
        (
            BOTH,
            {"keep": 0.1, "min_per_layer": 1},
            r"keep=0\.1 of the cost is too little for min_per_layer=1 .* takes",
        ),
        (BOTH, {"keep": 0.5, "min_per_layer": 5}, "min_per_layer=5 is more than the 4 heads of encoder"),
        (BOTH, {"keep": 0.5, "cost": "latency"}, "cost=latency takes the time of a multiply-accumulate"),
        (BOTH, {"keep": 0.5, "cost": {"heads": 1.0}}, r"cost=\{'heads': 1\.0\} lacks neurons"),
        (BOTH, {"num_heads": 5, "uniform": True}, r"num_heads=5 .* uniform=true keeps equally many .* 3 or 6"),
        (BOTH, {"num_neurons": 40, "uniform": True}, r"num_neurons=40 .* 24 or 60"),
        (BOTH, {"num_heads": 3, "min_per_layer": 2, "uniform": True}, "3 heads are too few for min_per_layer=2"),
        (
            BOTH,
            {"num_neurons": {"middle": 3}},
            r"num_neurons\.middle=3 names no kind of block .*has feed_forward \(144 neurons\)",
        ),
    ],
)
def test_a_budget_that_does_not_fit_is_refused_before_the_gates_change(units, arguments, message):
    gates = create_gates(build_bert_on_meta(), units=units, group_size=GROUP)
    for rival in RIVALS:
        with pytest.raises(gating.errors.InputError, match=message):
            RIVALS[rival](**arguments).attach(gates)
    assert gates.constraint is None
    assert gates.sampler is None


@pytest.mark.parametrize("cost", ["time", {}, {"heads": -1.0, "neurons": 1.0}, {"heads": 0.0}, {"layers": 1.0}, 3])
def test_an_unknown_cost_is_refused(cost):
    with pytest.raises(gating.errors.InputError, match=r"cost=.* cannot be used: give macs, .* cache, or"):
        gating.ExactBudget(cost=cost)


@pytest.mark.parametrize("rival", RIVALS)
def test_a_cost_that_is_timed_later_passes_the_check(rival):
    gates = gating.inject_gates(build("bert"), units=BOTH, group_size=GROUP)
    objective = RIVALS[rival](keep=0.5, cost="latency")
    objective.check(gates)
    with pytest.raises(gating.errors.InputError, match=r"cost=latency takes .* give the objective of gating.budget"):
        objective.attach(gates)
    assert gates.log_alpha.requires_grad
    with pytest.raises(gating.errors.InputError, match="is not a share of the cost"):
        RIVALS[rival](keep=5, cost="latency").check(gates)


def test_layers_with_different_gates_cannot_be_uniform():
    model = build("bert")
    gating.prune_heads(model, {0: [1]})
    gates = create_gates(model, units=BOTH, group_size=GROUP)
    with pytest.raises(gating.errors.InputError, match=r"encoder.layer.0.* has 3 heads with 3 gates, .* has 4 with 4"):
        gating.ExactBudget(keep=0.5, uniform=True).check(gates)
