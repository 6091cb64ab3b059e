"""Classes outside of transformers, and layouts that a user has registered, are tried before they get gates."""

from functools import lru_cache

import pytest
import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.bert.modeling_bert import BertIntermediate, BertSelfAttention

import gating
from gating.families import registry as families
from tests.support.family_models import FAMILIES
from tests.support.tiny_models import assert_same_state, hooks_of, state_of


class StrangeConfig(PretrainedConfig):
    model_type = "strange"
    vocab_size = 20


class SoftmaxMLP(nn.Module):
    """Common names, but each feature depends on all neurons."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(8, 32), nn.Linear(32, 8)

    def forward(self, hidden):
        return self.fc2(self.fc1(hidden).softmax(-1))


class PlainMLP(SoftmaxMLP):
    def forward(self, hidden):
        return self.fc2(self.fc1(hidden).relu())


class StrangeModel(PreTrainedModel):
    config_class = StrangeConfig
    main_input_name = "input_ids"

    def __init__(self, mlp):
        super().__init__(StrangeConfig())
        self.embed, self.mlp = nn.Embedding(20, 8), mlp

    def forward(self, input_ids=None):
        return {"hidden": self.mlp(self.embed(input_ids))}


def test_a_foreign_class_is_tried_before_it_gets_gates():
    torch.manual_seed(0)
    model = StrangeModel(SoftmaxMLP())
    state = state_of(model)
    with pytest.raises(ValueError, match="neurons masked"):
        gating.inject_gates(model, units="neurons", group_size=8)
    assert_same_state(model, state)
    assert hooks_of(model) == 0
    model.mlp = PlainMLP()
    weight = model.mlp.fc1.weight
    assert gating.inject_gates(model, units="neurons", group_size=8).num_neurons == 32
    assert model.mlp.fc1.weight is weight


class NormalizedIntermediate(BertIntermediate):
    def forward(self, hidden_states):
        features = super().forward(hidden_states)
        return features / features.norm(dim=-1, keepdim=True)


def test_a_foreign_part_of_a_known_block_is_tried(bert):
    bert.bert.encoder.layer[1].intermediate.__class__ = NormalizedIntermediate
    with pytest.raises(ValueError, match="neurons masked"):
        gating.inject_gates(bert, units="neurons", group_size=8)
    gates = gating.inject_gates(bert, units="neurons", group_size=8, exclude=["encoder.layer.1.output.dense"])
    assert gates.block_names == ["encoder.layer.0.output.dense", "encoder.layer.2.output.dense"]


class MixedHeads(BertSelfAttention):
    """Attention whose heads meet before the output projection."""

    def forward(self, *args, **kwargs):
        features, probabilities = super().forward(*args, **kwargs)
        return features / features.norm(dim=-1, keepdim=True), probabilities


def test_a_foreign_attention_class_is_tried(bert):
    state = state_of(bert)
    for layer in bert.bert.encoder.layer:
        layer.attention.self.__class__ = MixedHeads
    with pytest.raises(ValueError, match="heads masked"):
        gating.inject_gates(bert)
    assert_same_state(bert, state)
    assert hooks_of(bert) == 0


def test_a_registered_layout_is_tried(monkeypatch):
    wrong = gating.AttentionSpec((("query_key_value", "qkv"),), "dense", head_dim="head_size")
    monkeypatch.setitem(families._REGISTERED, "heads", {"GPTNeoXAttention": wrong})
    monkeypatch.setattr(families, "_find_row", lru_cache(families._find_row.__wrapped__))
    with pytest.raises(ValueError, match="registry") as raised:
        gating.inject_gates(FAMILIES["gpt_neox"].build())
    assert "guessed" not in str(raised.value)


def test_foreign_attention_of_a_model_without_a_batch_gets_gates_untried():
    """A batch for some models can only come from the user, at the end: that is no reason to refuse the start."""
    inner = FAMILIES["llama"].build().model.layers[0].self_attn
    inner.__class__ = type("OwnAttention", (type(inner),), {})
    assert gating.inject_gates(nn.ModuleList([inner])).num_heads == 8
