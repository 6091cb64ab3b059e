"""Gates on feed-forward neurons, alone and beside those on heads."""

import pytest
import torch
from transformers import BertConfig, BertModel

import gating
from gating.gates import create_gates
from gating.proof.probe import make_probe
from tests.support.family_models import FAMILIES
from tests.support.gated import TOTAL, without_dropout
from tests.support.tiny_models import (
    NUM_LAYERS,
    assert_same_state,
    batch_for,
    build,
    hooks_of,
    logits_of,
    state_of,
)
from tests.support.versions import enable_checkpointing

BOTH = ("heads", "neurons")
DOWN = "encoder.layer.{}.output.dense"
WIDTH = 48


def seen_scales(model, batch):
    """Return the factors of each feed-forward block's features, or columns, in one forward pass, ``[..., WIDTH]``."""
    scales = []
    handles = [
        block.output_projection.gate.register_forward_hook(
            lambda _, args, scaled: scales.append((scaled / args[0]).detach().flatten(0, -2))
        )
        for block in gating.find_feed_forward_blocks(model)
    ]
    model(**batch)
    for handle in handles:
        handle.remove()
    return scales


@pytest.mark.parametrize("units", ["neurons", BOTH], ids=str)
def test_open_gates_change_nothing(model, units):
    batch = batch_for(model)
    expected = logits_of(model, batch)
    gates = gating.inject_gates(model, units=units, group_size=16)
    with gates.fixed_at(torch.ones(gates.log_alpha.shape)):
        assert torch.equal(logits_of(model, batch), expected)


def test_the_vector_has_heads_before_neurons(bert):
    gates = gating.inject_gates(bert, units=BOTH, group_size=20)
    assert gates.units == BOTH
    assert gates.block_kinds == ["encoder"] * 3 + ["feed_forward"] * 3
    assert gates.block_sizes == [4, 4, 4, 3, 3, 3]
    assert gates.counts["heads"] == (1,) * TOTAL + (0,) * 9
    assert gates.counts["neurons"] == (0,) * TOTAL + (20, 20, 8) * 3
    assert (gates.num_heads, gates.num_neurons) == (TOTAL, NUM_LAYERS * WIDTH)
    assert repr(gates) == "HeadGates(12 heads in 3 attention blocks, 9 gates for 144 neurons in 3 feed-forward blocks)"
    with torch.no_grad():
        gates.log_alpha.fill_(9.0)[[0, 12, 14]] = -9.0
    assert (gates.num_open(), gates.count_open("neurons")) == (TOTAL - 1, NUM_LAYERS * WIDTH - 28)
    assert list(gates.open_by_block().values()) == [3, 4, 4, 20, 48, 48]


def test_each_group_of_neurons_is_multiplied_by_its_gate(bert):
    gates = gating.inject_gates(bert, units="neurons", group_size=20)
    values = torch.linspace(0.1, 0.9, 9)
    with gates.fixed_at(values):
        scales = seen_scales(bert, batch_for(bert))
    for scale, of_block in zip(scales, values.split(3), strict=True):
        expected = of_block.repeat_interleave(torch.tensor([20, 20, 8])).expand_as(scale)
        torch.testing.assert_close(scale, expected, equal_nan=True)


def test_one_sample_serves_a_whole_pass_of_shared_and_chunked_layers():
    """ALBERT runs one layer several times, and chunks run the down projection once for each part of the sequence."""
    albert = FAMILIES["albert"].build().train()
    gating.inject_gates(without_dropout(albert), units=BOTH, group_size=16, init_prob_open=0.6)
    scales = seen_scales(albert, make_probe(albert))
    assert len(scales) == albert.config.num_hidden_layers
    torch.testing.assert_close(scales[0][0], scales[1][0])
    assert (scales[0][0] - seen_scales(albert, make_probe(albert))[0][0]).abs().max() > 0.01
    chunked = build("bert", chunk_size_feed_forward=5)
    gates = gating.inject_gates(chunked, units="neurons", group_size=16)
    values = torch.linspace(0, 1, 9)
    plain = build("bert")
    with gates.fixed_at(values), gating.inject_gates(plain, units="neurons", group_size=16).fixed_at(values):
        torch.testing.assert_close(logits_of(chunked, batch_for(plain)), logits_of(plain, batch_for(plain)))


def test_checkpoints_change_no_gradient_of_either_unit():
    gradients = []
    for checkpointed in (False, True):
        model = FAMILIES["bart"].build().train()
        gates = gating.inject_gates(without_dropout(model), units=BOTH, group_size=7, init_prob_open=0.6)
        if checkpointed:
            enable_checkpointing(model)
        torch.manual_seed(0)
        model(**make_probe(model)).logits.pow(2).mean().backward()
        gradients.append(gates.log_alpha.grad)
    neurons = torch.tensor(gates.counts["neurons"]) > 0
    assert gradients[0][neurons].abs().sum() > 0
    assert gradients[0][~neurons].abs().sum() > 0
    torch.testing.assert_close(gradients[1], gradients[0])


def test_excluded_blocks_have_no_gate(bert):
    gates = gating.inject_gates(bert, units=BOTH, exclude=[DOWN.format(1), "encoder.layer.0.attention.self"])
    assert gates.num_neurons == 2 * WIDTH
    assert gates.num_heads == TOTAL - 4
    assert DOWN.format(1) not in gates.block_names


def test_remove_leaves_no_trace(model):
    text, state, hooks, batch = str(model), state_of(model), hooks_of(model), batch_for(model)
    expected = logits_of(model, batch)
    attributes = {name: set(vars(module)) for name, module in model.named_modules()}
    gates = gating.inject_gates(model, units=BOTH, group_size=16)
    assert "(gate): BlockGate()" in str(model)
    model.train()(**batch)
    gates.remove()
    assert str(model.eval()) == text
    assert_same_state(model, state)
    assert hooks_of(model) == hooks
    assert {name: set(vars(module)) for name, module in model.named_modules()} == attributes
    assert torch.equal(logits_of(model, batch), expected)


def test_created_gates_are_those_that_would_be_injected(model):
    created = create_gates(model, units=BOTH, group_size=20)
    assert hooks_of(model) == 0
    injected = gating.inject_gates(model, units=BOTH, group_size=20)
    for name in ("block_names", "block_sizes", "block_kinds", "counts", "units"):
        assert getattr(created, name) == getattr(injected, name)
    for name in ("macs_per_gate", "parameters_per_gate"):
        assert torch.equal(getattr(created, name), getattr(injected, name))


def test_gates_of_a_model_without_values_have_sizes():
    with torch.device("meta"):
        model = BertModel(BertConfig(num_hidden_layers=2))
    gates = create_gates(model, units=BOTH)
    assert gates.counts["neurons"][24:] == (64,) * 96
    # The numbers of the usual table: a head of BERT-base costs as much as two groups of 64 neurons.
    assert gates.parameters_per_gate[[0, -1]].tolist() == [4 * 64 * 768 + 3 * 64, 2 * 64 * 768 + 64]
    assert gates.macs_per_gate[-1] == 128 * 2 * 64 * 768


def test_a_size_above_the_width_gives_one_gate_for_each_block(bert):
    gates = gating.inject_gates(bert, units="neurons", group_size=1000)
    assert gates.counts["neurons"] == (WIDTH,) * NUM_LAYERS


@pytest.mark.parametrize("group_size", [8, 4, 1])
def test_gates_on_a_model_that_has_lost_neurons_and_heads(bert, group_size):
    gating.prune_heads(bert, {0: range(4)})
    gating.prune_neurons(bert, {0: [1, 4], 1: range(6)}, group_size=8)
    batch = batch_for(bert)
    expected = logits_of(bert, batch)
    gates = gating.inject_gates(bert, units=BOTH, group_size=group_size)
    assert gates.block_names == [f"encoder.layer.{i}.attention.self" for i in (1, 2)] + [DOWN.format(i) for i in (0, 2)]
    assert sum(gates.counts["neurons"]) == 32 + WIDTH
    with gates.fixed_at(torch.ones(gates.log_alpha.shape)):
        assert torch.equal(logits_of(bert, batch), expected)


def test_another_size_than_that_of_a_removal_must_divide_it(bert):
    gating.prune_neurons(bert, {1: [0]}, group_size=8)
    with pytest.raises(ValueError, match="group_size=64"):
        gating.inject_gates(bert, units="neurons")
    gating.prune_neurons(bert, {1: range(6)})
    assert gating.inject_gates(bert, units="neurons").num_neurons == 2 * WIDTH


@pytest.mark.parametrize(("units", "name"), [("heads", "attention.self"), ("neurons", "output.dense")])
def test_layers_of_two_models_have_gates_of_one(bert, make_model, units, name):
    other = make_model("bert")
    other.bert.encoder.layer[0] = bert.bert.encoder.layer[0]
    gates = gating.inject_gates(bert, units=units, group_size=8)
    for change in (
        lambda: gating.inject_gates(other, units=units, group_size=8),
        lambda: gating.prune_heads(other, {1: [0]}),
    )[: 2 if units == "heads" else 1]:
        with pytest.raises(ValueError, match=rf"layer\.0\.{name} has gates of another model"):
            change()
    gates.remove()
    assert len(gating.inject_gates(other, units=units, group_size=8).blocks()) == 3


@pytest.mark.parametrize("units", ["heads", "neurons"])
def test_a_model_and_its_part_do_not_both_have_gates(bert, units):
    gates = gating.inject_gates(bert.bert, units=units)
    with pytest.raises(ValueError, match="has gates of another model"):
        gating.inject_gates(bert, units=units)
    gates.remove()
    gating.inject_gates(bert, units=units)
    with pytest.raises(ValueError, match="has gates of another model"):
        gating.inject_gates(bert.bert, units=units)
