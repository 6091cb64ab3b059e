"""Attention blocks are found in every family."""

import pytest
import transformers
from torch import nn

import gating
from gating.families.registry import find_spec
from tests.support.tiny_models import NUM_HEADS, NUM_LAYERS, build


def test_every_layer_has_one_block_with_all_heads(model):
    blocks = gating.find_attention_blocks(model)
    assert [block.layer_idx for block in blocks] == list(range(NUM_LAYERS))
    for block in blocks:
        assert (block.num_heads, block.num_key_value_heads, block.head_dim) == (NUM_HEADS, NUM_HEADS, 8)
        assert block.head_ids == tuple(range(NUM_HEADS))
        assert block.num_heads_before == NUM_HEADS
        assert block.output_projection.weight.shape == (32, 32)
        assert not block.is_cross_attention


def test_names_lead_from_the_base_model_to_the_module(model):
    for block in gating.find_attention_blocks(model):
        assert model.base_model.get_submodule(block.name) is block.module


def test_names_are_the_same_with_and_without_a_task_head(model):
    names = [block.name for block in gating.find_attention_blocks(model)]
    assert [block.name for block in gating.find_attention_blocks(model.base_model)] == names


def test_a_module_around_a_model_is_searched_too(bert):
    blocks = gating.find_attention_blocks(nn.ModuleDict({"encoder": bert}))
    assert [block.name for block in blocks] == [f"encoder.bert.encoder.layer.{i}.attention.self" for i in range(3)]


def test_cross_attention_is_recognized():
    model = build("bert", num_hidden_layers=2, is_decoder=True, add_cross_attention=True)
    blocks = [(block.layer_idx, block.is_cross_attention) for block in gating.find_attention_blocks(model)]
    assert blocks == [(0, False), (0, True), (1, False), (1, True)]


def test_an_unknown_family_is_named_with_the_way_to_register_it(forget):
    forget("MultiHeadAttention")
    config = transformers.CTRLConfig(vocab_size=20, n_embd=16, dff=8, n_layer=1, n_head=2, n_positions=8)
    with pytest.raises(ValueError, match=r"gating\.register_attention_spec"):
        gating.find_attention_blocks(transformers.CTRLModel(config))


def test_a_registered_class_is_found():
    class HomeMadeAttention(nn.Module):
        def __init__(self):
            super().__init__()
            self.head_dim = 3
            self.q, self.k, self.v, self.out = (nn.Linear(6, 6) for _ in range(4))

    spec = gating.AttentionSpec((("q", "q"), ("k", "k"), ("v", "v")), "out")
    gating.register_attention_spec("HomeMadeAttention", spec)
    (block,) = gating.find_attention_blocks(nn.Sequential(HomeMadeAttention()))
    assert (block.name, block.num_heads, block.head_dim) == ("0", 2, 3)


def test_subclasses_have_the_spec_of_their_base():
    base = transformers.models.bert.modeling_bert.BertSelfAttention
    mine = type("BertSelfAttentionOfMine", (base,), {})
    config = transformers.BertConfig(hidden_size=32, num_attention_heads=4)
    assert find_spec(mine(config)) is find_spec(base(config)) is not None


def test_the_newest_spec_for_a_class_wins():
    base = transformers.models.bert.modeling_bert.BertSelfAttention
    spec = gating.AttentionSpec((("query", "q"),), "^output.dense")
    gating.register_attention_spec("BertSelfAttention", spec)
    assert find_spec(base(transformers.BertConfig(hidden_size=32, num_attention_heads=4))) is spec


def test_patterns_match_whole_names():
    assert find_spec(type("MyBertSelfAttentionToo", (nn.Module,), {})()) is None
