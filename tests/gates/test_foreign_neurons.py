"""Feed-forward classes outside of transformers, which are tried before they get gates."""

import pytest
import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.bert.modeling_bert import BertIntermediate

import gating
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
    with pytest.raises(ValueError, match=r"differs from the model with these neurons masked.*layout of SoftmaxMLP"):
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
    with pytest.raises(ValueError, match="differs from the model with these neurons masked"):
        gating.inject_gates(bert, units="neurons", group_size=8)
    assert hooks_of(bert) == 0
