"""Injection, removal and copies of gates."""

import copy

import pytest
import torch
from torch import nn

import gating
from tests.support.gated import TOTAL, without_dropout
from tests.support.tiny_models import (
    NUM_HEADS,
    batch_for,
    hooks_of,
    logits_of,
)


@pytest.mark.parametrize("training", [False, True])
def test_gates_are_injected_in_the_mode_of_the_model(bert, training):
    bert.train(training)
    gates = gating.inject_gates(bert)
    assert all(module.training == training for module in (bert, gates, *gates.modules(), *bert.modules()))


def test_an_unknown_model_is_named_with_the_way_to_register_it():
    class StrangeAttention(nn.Module):
        pass

    class StrangeModel(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = StrangeAttention()

    model = StrangeModel()
    with pytest.raises(ValueError, match="register_attention_spec"):
        gating.inject_gates(model)
    assert hooks_of(model) == 0


def test_gates_can_be_removed_twice_and_injected_again(bert, gates):
    gates.remove()
    gates.remove()
    assert gating.inject_gates(bert).num_heads == TOTAL


@pytest.mark.parametrize("constrained", [False, True])
def test_a_copy_in_the_middle_of_training_is_isolated(bert, constrained):
    gates = gating.inject_gates(without_dropout(bert), init_prob_open=0.9)
    if constrained:
        gating.ExactBudget(num_heads=6).attach(gates)
    batch = batch_for(bert)
    bert.train()(**batch).logits.sum().backward()
    twin = copy.deepcopy(bert)
    assert twin.head_gates is not gates
    assert twin.head_gates.log_alpha.data_ptr() != gates.log_alpha.data_ptr()
    torch.manual_seed(1)
    expected = logits_of(bert, batch)
    torch.manual_seed(1)
    assert torch.equal(logits_of(twin, batch), expected)
    with torch.no_grad():
        twin.head_gates.log_alpha.fill_(-9.0)
    bert.eval()
    twin.eval()
    if not constrained:  # A budget shifts equal locations back.
        assert twin.head_gates.num_open() == 0
        assert not torch.equal(logits_of(twin, batch), logits_of(bert, batch))
    assert (gates.log_alpha > 0).all()


def test_removing_the_gates_of_a_copy_leaves_the_original_gated(bert, gates):
    twin = copy.deepcopy(bert)
    hooks = hooks_of(bert)
    twin.head_gates.remove()
    assert hooks_of(twin) == 0
    assert not hasattr(twin, "head_gates")
    assert hooks_of(bert) == hooks
    assert bert.head_gates is gates


def test_a_training_pass_of_a_copy_gives_the_copy_gradients_only(bert):
    gates = gating.inject_gates(bert, init_prob_open=0.6)
    bert.train()(**batch_for(bert))
    twin = copy.deepcopy(bert)
    twin(**batch_for(bert)).logits.sum().backward()
    assert gates.log_alpha.grad is None
    assert twin.head_gates.log_alpha.grad is not None


def test_gates_are_injected_into_blocks_with_heads(bert):
    gating.prune_heads(bert, {0: [1], 1: range(NUM_HEADS)})
    gates = gating.inject_gates(bert)
    assert [len(values) for values in gates.by_block().values()] == [3, 4]
    batch = batch_for(bert)
    bert.train()(**batch).logits.sum().backward()
