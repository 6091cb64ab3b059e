"""A model without heads computes the outputs of the model with masked heads."""

import copy
import weakref
from types import MethodType

import pytest
import torch
from torch import nn

import gating
from gating.structure.edits import Edit, apply_edits, undo_edits
from tests.support.tiny_models import (
    NUM_HEADS,
    assert_same_state,
    batch_for,
    build,
    logits_of,
    state_of,
)

HEAD_DIM = 8


def remove(model, pattern):
    """Keep the heads of a pattern, and return the functions that undo it."""
    blocks = gating.find_attention_blocks(model)
    edits = [edit for block, kept in zip(blocks, pattern, strict=True) for edit in block.plan_removal(kept)]
    return apply_edits(edits)


def test_rows_and_columns_are_those_of_the_kept_heads(model):
    before = {block.name: block for block in gating.find_attention_blocks(copy.deepcopy(model))}
    remove(model, [[0, 2], [1], [3]])
    for block in gating.find_attention_blocks(model):
        rows = torch.cat([torch.arange(head * HEAD_DIM, (head + 1) * HEAD_DIM) for head in block.head_ids])
        old = before[block.name]
        for path, _ in block.spec.projections:
            new_linear, old_linear = getattr(*block.locate(path)), getattr(*old.locate(path))
            assert torch.equal(new_linear.weight, old_linear.weight[rows])
            assert torch.equal(new_linear.bias, old_linear.bias[rows])
        assert torch.equal(block.output_projection.weight, old.output_projection.weight[:, rows])
        assert torch.equal(block.output_projection.bias, old.output_projection.bias)


def test_counts_on_the_modules_follow(model):
    pattern = [[0, 2, 3], [], [0, 1, 2, 3]]
    remove(model, pattern)
    for block, kept in zip(gating.find_attention_blocks(model), pattern, strict=True):
        assert (block.num_heads, block.head_ids, block.num_heads_before) == (len(kept), tuple(kept), NUM_HEADS)
        for name in ("num_heads", "num_attention_heads", "n_heads"):
            assert getattr(block.module, name, len(kept)) == len(kept)
        assert getattr(block.module, "all_head_size", HEAD_DIM * len(kept)) == HEAD_DIM * len(kept)


@pytest.mark.parametrize("kept", [[1, 2], []])
def test_frozen_parameters_stay_frozen(bert, kept):
    block = gating.find_attention_blocks(bert)[0]
    block.module.query.weight.requires_grad_(False)
    block.output_projection.bias.requires_grad_(False)
    remove(bert, [kept, [0], [1]])
    block = gating.find_attention_blocks(bert)[0]
    assert not block.output_projection.bias.requires_grad
    if kept:
        assert not block.module.query.weight.requires_grad
        assert block.module.key.weight.requires_grad
        assert block.output_projection.weight.requires_grad


@pytest.mark.parametrize("pattern", [[[], [1, 2, 3], [0, 1, 2, 3]], [[0], [], []]], ids=str)
def test_undo_restores_bit_for_bit(model, pattern):
    batch, state, text = batch_for(model), state_of(model), str(model)
    attributes = {name: vars(module).copy() for name, module in model.named_modules()}
    expected = logits_of(model, batch)
    parameters = dict(model.named_parameters())
    undo_edits(remove(model, pattern))
    assert_same_state(model, state)
    assert str(model) == text
    assert torch.equal(logits_of(model, batch), expected)
    assert all(parameter is parameters[name] for name, parameter in model.named_parameters())
    for name, module in model.named_modules():
        assert set(vars(module)) == set(attributes[name]), name


@pytest.mark.parametrize("held", ["nothing", "a gradient"])
def test_undo_restores_parameters_that_without_other_references(model, held):
    state = state_of(model)
    if held == "a gradient":
        model(**batch_for(model)).logits.sum().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    undo_edits(remove(model, [[0, 1, 2, 3], [2], [0, 3]]))
    assert_same_state(model, state)
    assert all(parameter.grad is gradients[name] for name, parameter in model.named_parameters())


def test_weights_that_are_cut_are_let_go_of_before_the_change_is_final(bert):
    projection = gating.find_attention_blocks(bert)[0].module.query
    former = weakref.ref(projection.weight)
    done = remove(bert, [[0], [2], [0, 3]])
    assert done
    assert former() is None


def test_a_failing_edit_undoes_those_before_it(bert):
    state = state_of(bert)
    block = gating.find_attention_blocks(bert)[0]

    class Failing(Edit):
        def apply(self):
            raise MemoryError

    with pytest.raises(MemoryError):
        apply_edits([*block.plan_removal([0]), Failing(block.module, "anything", None)])
    assert_same_state(bert, state)


def test_planning_changes_nothing(bert):
    state = state_of(bert)
    for block in gating.find_attention_blocks(bert):
        block.plan_removal([0])
        block.plan_removal([])
    assert_same_state(bert, state)


def test_emptied_layers_keep_their_place_in_output_attentions(model):
    model.set_attn_implementation("eager")
    batch = batch_for(model)
    whole = model(**batch, output_attentions=True).attentions
    remove(model, [[0, 1, 2, 3], [], [1]])
    attentions = model(**batch, output_attentions=True).attentions
    assert [attention.shape[1] for attention in attentions] == [4, 0, 1]
    # The input of the first layer is unchanged.
    assert torch.equal(attentions[0], whole[0])
    assert attentions[1].shape[2:] == whole[1].shape[2:]


def test_an_emptied_layer_is_a_stub_with_a_bias_and_no_projection(model):
    remove(model, [[], [0], [1]])
    block = gating.find_attention_blocks(model)[0]
    assert block.output_projection.weight.shape == (32, 0)
    assert all(getattr(*block.locate(path)) is None for path, _ in block.spec.projections)
    assert "in_features=0, out_features=32, bias=True" in str(block.output_projection)


def test_heads_that_share_keys_and_values_go_together(bert):
    block = gating.find_attention_blocks(bert)[0]
    for name in ("key", "value"):
        setattr(block.module, name, nn.Linear(32, 2 * HEAD_DIM))
    block = gating.find_attention_blocks(bert)[0]
    assert block.num_key_value_heads == 2
    apply_edits(block.plan_removal([2, 3]))
    assert block.module.query.weight.shape == (2 * HEAD_DIM, 32)
    assert block.module.key.weight.shape == (HEAD_DIM, 32)


def test_a_forward_of_a_user_is_kept_by_a_plan():
    model = build("bert")
    (block, *_) = gating.find_attention_blocks(model)
    module, calls = block.module, []
    module.forward = MethodType(lambda self, *args, **kwargs: calls.append(args), module)
    block.plan_removal(set())
    module.forward()
    assert calls == [()]
