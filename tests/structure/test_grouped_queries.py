"""Query heads that share keys and values: gates for groups, gates for each, and padding."""

import pytest
import torch
from torch import nn

import gating
from gating.loader.modeling import RECORD_KEY
from gating.proof.outputs import forward_outputs, max_relative_difference
from gating.proof.probe import make_probe
from tests.support.family_models import FAMILIES
from tests.support.gated import num_kept


@pytest.fixture
def llama():
    """Three layers of eight query heads in four groups."""
    return FAMILIES["llama"].build()


def test_a_group_has_one_gate_that_counts_as_its_heads(llama):
    gates = gating.inject_gates(llama)
    assert (gates.log_alpha.numel(), gates.num_heads, gates.num_open()) == (12, 24, 24)
    assert str(gates) == "HeadGates(12 gates for 24 heads in 3 attention blocks)"
    torch.testing.assert_close(gates.expected_open(), gates.prob_open().sum() * 2)


def test_one_group_for_all_heads_needs_no_padding():
    model = FAMILIES["gemma"].build()
    assert gating.inject_gates(model).log_alpha.numel() == 12
    model.head_gates.remove()
    gating.prune_heads(model, {0: [1, 2]})
    block = gating.find_attention_blocks(model)[0]
    assert block.head_slots == block.head_ids == (0, 3)


def test_the_budget_is_met_in_heads(llama):
    gates = gating.inject_gates(llama)
    objective = gating.ExactBudget(num_heads=10)
    objective.attach(gates)
    objective.update(gates, 1.0)
    assert float(gates.expected_open().detach()) == pytest.approx(10, abs=1e-2)
    report = gating.finalize(llama, gates, kept=objective.kept(gates))
    assert report.num_heads == 10
    assert sum(block.num_heads for block in gating.find_attention_blocks(llama)) == 10


def test_a_budget_between_groups_is_refused_with_the_nearest_ones(llama):
    gates = gating.inject_gates(llama)
    with pytest.raises(ValueError, match="num_heads=9"):
        gating.ExactBudget(num_heads=9).attach(gates)
    with pytest.raises(ValueError, match="8 or 10"):
        gating.finalize(llama, gates, num_heads=9)
    assert num_kept(gates, gating.ExactBudget(keep=0.38)) in (8, 10)


def test_split_groups_are_padded_and_the_padding_is_recorded(llama, tmp_path):
    probe = make_probe(llama)
    gates = gating.inject_gates(llama, group_queries=False)
    values = torch.ones(24)
    values[[1, 2, 3, 8, 9, 10]] = 0  # in layer 0: half of group 0, all of group 1; in layer 1: group 0 and half of 1
    with gates.fixed_at(values):
        expected = forward_outputs(llama, probe)
    gates.remove()
    report = gating.prune_heads(llama, {0: [1, 2, 3], 1: [0, 1, 2]})
    assert report.num_heads == 18
    first, second, _ = gating.find_attention_blocks(llama)
    assert (first.head_ids, first.head_slots) == ((0, 4, 5, 6, 7), (0, 1, 4, 5, 6, 7))
    assert (first.num_heads, first.num_key_value_heads) == (5, 3)
    assert (second.head_ids, second.head_slots) == ((3, 4, 5, 6, 7), (2, 3, 4, 5, 6, 7))
    assert max_relative_difference(expected, forward_outputs(llama, probe)) < 1e-5
    assert llama.config.to_dict()[RECORD_KEY]["units"]["layers.0.self_attn"] == {
        "num_heads_before": 8,
        "num_key_value_heads_before": 4,
        "head_ids": [0, 4, 5, 6, 7],
        "head_slots": [0, 1, 4, 5, 6, 7],
    }
    gating.save_compact(llama, tmp_path / "compact")
    again = gating.load_compact(tmp_path / "compact")
    assert max_relative_difference(forward_outputs(llama, probe), forward_outputs(again, probe)) == 0
    assert [block.head_ids for block in gating.find_attention_blocks(again)] == [
        block.head_ids for block in gating.find_attention_blocks(llama)
    ]


def test_gates_on_a_padded_model_leave_padding_out(llama):
    gating.prune_heads(llama, {0: [1], 1: [0, 1, 2, 3, 4, 5]})
    gates = gating.inject_gates(llama)
    # One head of the first group of layer 0; in layer 1 a single group is left, whose heads go one by one.
    assert gates.counts["heads"] == (1, 2, 2, 2, 1, 1, 2, 2, 2, 2)
    report = gating.finalize(llama, gates, num_heads=7)
    assert report.num_heads == 7
    gates = gating.inject_gates(llama, group_queries=False)
    assert gating.finalize(llama, gates, num_heads=3).num_heads == 3


def test_key_value_heads_of_removed_groups_are_gone(llama):
    gating.prune_heads(llama, {0: [0, 1]})
    attention = llama.model.layers[0].self_attn
    assert attention.k_proj.weight.shape == attention.v_proj.weight.shape == (3 * 8, 64)
    assert isinstance(attention.q_proj, nn.Linear)
    assert attention.num_key_value_groups == 2
