"""Finalizing of gates on neurons, alone and beside those on heads."""

import warnings

import pytest
import torch

import gating
from gating.errors import OperationError
from gating.proof import prove
from gating.proof.prove import ExpectedOutputs
from gating.pruning.finalize import decide_gate_values
from gating.structure.edits import apply_edits
from tests.support.tiny_models import assert_same_state, batch_for, hooks_of, logits_of, state_of

BOTH = ("heads", "neurons")
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}  # Single precision, sums in another order.
# Of the gates of both units: 12 heads, then 3 x (20, 20, 8) neurons.
IS_NEURON = torch.tensor([False] * 12 + [True] * 9)


def spread_gates(model, *, units=BOTH, group_size=20):
    """Inject gates: some closed, some open, some in between."""
    gates = gating.inject_gates(model, units=units, group_size=group_size)
    with torch.no_grad():
        noise = torch.randn(gates.log_alpha.shape, generator=torch.Generator().manual_seed(0))
        gates.log_alpha.copy_(3 * noise)
    return gates


def separate_gates(gates, kept):
    """Open the kept gates and close the others."""
    with torch.no_grad():
        gates.log_alpha.copy_(torch.where(kept, 9.0, -9.0))


@pytest.mark.parametrize("units", ["neurons", BOTH], ids=str)
def test_folded_gates_give_the_outputs_of_the_gated_model(model, units):
    batch = batch_for(model)
    gates = spread_gates(model, units=units)
    values = gates.values().detach()
    assert ((values > 0) & (values < 1)).any()
    assert (values == 0).any()
    with gates.fixed_at(values):
        expected = logits_of(model, batch)
    num_neurons = gates.count_open("neurons")
    report = gating.finalize(model, gates)
    torch.testing.assert_close(logits_of(model, batch), expected, **TOLERANCE)
    assert report.num_neurons == num_neurons
    assert report.max_difference < 1e-5
    assert hooks_of(model) == 0
    factors = [value for name in report.kept_neurons for value in report.folded[name]]
    torch.testing.assert_close(torch.tensor(factors), values[-9:][values[-9:] > 0])


@pytest.mark.parametrize(("num_heads", "num_neurons"), [(5, 76), (12, 8), (1, 144), (None, 48), (3, None)])
def test_counts_of_both_units_are_kept_exactly(bert, num_heads, num_neurons):
    batch = batch_for(bert)
    gates = spread_gates(bert)
    num_open = (gates.num_open(), gates.count_open("neurons"))
    values = decide_gate_values(gates, num_heads=num_heads, num_neurons=num_neurons)
    with gates.fixed_at(values):
        expected = logits_of(bert, batch)
    report = gating.finalize(bert, gates, num_heads=num_heads, num_neurons=num_neurons)
    # A unit without a number keeps all open gates.
    assert (report.num_heads, report.num_neurons) == (num_heads or num_open[0], num_neurons or num_open[1])
    torch.testing.assert_close(logits_of(bert, batch), expected, **TOLERANCE)


def test_groups_of_the_report_are_those_of_the_gates(bert):
    """Also of blocks that lose nothing, and do not know the size of their groups."""
    gates = gating.inject_gates(bert, units="neurons", group_size=20)
    kept = torch.tensor([True, False, True] + [True] * 6)
    report = gating.finalize(bert, gates, kept=kept)
    assert list(report.kept_neurons.values()) == [(0, 2), (0, 1, 2), (0, 1, 2)]
    assert [len(report.folded[name]) for name in report.kept_neurons] == [2, 3, 3]


@pytest.mark.parametrize("removed", ["heads", "neurons"])
def test_all_units_of_one_kind_may_go(bert, removed):
    gates = gating.inject_gates(bert, units=BOTH, group_size=20)
    separate_gates(gates, IS_NEURON if removed == "heads" else ~IS_NEURON)
    batch = batch_for(bert)
    expected = logits_of(bert, batch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = gating.finalize(bert, gates)
    assert (report.num_heads, report.num_neurons) == ((0, 144) if removed == "heads" else (12, 0))
    torch.testing.assert_close(logits_of(bert, batch), expected, **TOLERANCE)
    bert.train()(**batch).logits.sum().backward()
    assert not [name for name, parameter in bert.named_parameters() if parameter.grad is None]


def test_a_compact_model_can_be_gated_and_finalized_again(bert):
    gating.prune_heads(bert, {0: [0], 1: range(4)})
    gating.prune_neurons(bert, {0: [0, 2], 2: range(6)}, group_size=8)
    gates = gating.inject_gates(bert, units=BOTH, group_size=4)
    assert gates.counts["heads"].count(1) == 7
    separate_gates(gates, torch.arange(gates.log_alpha.numel()) % 2 == 0)
    batch = batch_for(bert)
    expected = logits_of(bert, batch)
    report = gating.finalize(bert, gates)
    assert list(report.kept_neurons.values())[::2] == [(3, 7, 9, 11), ()]
    torch.testing.assert_close(logits_of(bert, batch), expected, **TOLERANCE)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("at_forward", [False, True])
def test_an_error_restores_heads_neurons_and_gates(bert, monkeypatch, training, at_forward):
    gates = spread_gates(bert)
    bert.train(training)
    state, text, hooks = state_of(bert), str(bert), hooks_of(bert)
    classes = [type(module) for module in bert.modules()]
    if at_forward:
        # As for a wrong layout.
        monkeypatch.setattr(ExpectedOutputs, "difference", lambda *_: 1.0)
    else:
        monkeypatch.setattr(prove, "apply_edits", lambda edits: apply_edits([*edits, None]))
    with pytest.raises((OperationError, AttributeError)):
        gating.finalize(bert, gates)
    assert_same_state(bert, state)
    assert (str(bert), hooks_of(bert)) == (text, hooks)
    assert [type(module) for module in bert.modules()] == classes
    assert bert.head_gates is gates
    assert bert.training == gates.training == training
    assert not hasattr(bert.config, "head_gating")
    monkeypatch.undo()
    assert gating.finalize(bert, gates).num_neurons < 144


def test_neurons_without_gates_are_in_no_groups(bert):
    report = gating.finalize(bert, gating.inject_gates(bert), num_heads=12)
    assert report.kept_neurons == {}
    assert report.num_neurons == report.num_neurons_before == 144
    gating.prune_neurons(bert, {0: [1]}, group_size=16)
    # Those of an earlier removal stay in its groups.
    report = gating.prune_heads(bert, {1: [0]})
    assert list(report.kept_neurons.values()) == [(0, 2)]
