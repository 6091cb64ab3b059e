"""Attention modules without gates are named with a reason that is true for them, unless they were left out."""

import warnings
from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.bert.modeling_bert import BertModel
from transformers.models.stablelm.configuration_stablelm import StableLmConfig

import gating
from gating.discovery.find import search_blocks
from tests.support.family_models import FAMILIES, GROUPED, TEXT, ZOO


class OddAttention(nn.Module):
    """Attention with names of its own."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Linear(64, 64)
        self.back = nn.Linear(64, 64)

    def forward(self, hidden_states):
        return self.back(self.mix(hidden_states).cumsum(1))


class TwoTowers(PreTrainedModel):
    """A language tower that the registry knows, and a vision tower that it does not, whose first two layers run."""

    config_class = PreTrainedConfig
    main_input_name = "input_ids"

    def __init__(self, *layers):
        super().__init__(PreTrainedConfig())
        self.language_model = FAMILIES["bert"].build().bert
        self.vision_tower = nn.ModuleList(layers)
        self.config.vocab_size = TEXT["vocab_size"]

    def forward(self, input_ids):
        hidden_states = self.language_model(input_ids).last_hidden_state
        for layer in self.vision_tower[:2]:
            hidden_states = hidden_states + layer(hidden_states)
        return {"out": hidden_states}


@pytest.fixture
def towers():
    return TwoTowers(OddAttention(), OddAttention()).eval()


@pytest.mark.parametrize("function", [gating.find_attention_blocks, gating.inject_gates])
def test_a_tower_without_gates_is_named_with_the_reason(towers, function):
    with pytest.warns(UserWarning, match="vision_tower.0") as caught:
        function(towers)
    message = str(caught[0].message)
    assert "(OddAttention): its layers fit no registered layout; discover=True may find theirs" in message
    assert "exclude=['vision_tower.0']" in message
    assert "gates.towers" in str(caught[0].message)


@pytest.mark.parametrize("options", [{"towers": ["language"]}, {"towers": "language"}, {"exclude": ["vision_tower.*"]}])
def test_what_a_user_leaves_out_is_not_named(towers, options):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        blocks = gating.find_attention_blocks(towers, **options)
        gates = gating.inject_gates(towers, **options)
    assert {block.tower for block in blocks} == {"language"}
    assert gates.block_names == [block.name for block in blocks]
    assert gates.ungated == ()


def test_a_block_whose_heads_depend_on_each_other_does_not_stop_the_others(towers):
    config = StableLmConfig(**GROUPED)
    towers.vision_tower[0] = FAMILIES["llama"].build().model.layers[0].self_attn
    towers.vision_tower[0].q_norm = nn.RMSNorm(64)
    towers.vision_tower[0].head_dim = config.hidden_size // config.num_attention_heads
    blocks, ungated = search_blocks(towers, "heads")
    assert len(blocks) == TEXT["num_hidden_layers"]
    assert "q_norm normalizes across all heads" in ungated[0].reason


def test_norms_across_heads_refuse_one_tower_only():
    family = ZOO["internvl"]
    vision = {**family.arguments["vision_config"], "use_qk_norm": True}
    family = replace(family, arguments={**family.arguments, "vision_config": vision})
    blocks, ungated = search_blocks(family.build(), "heads")
    assert {block.tower for block in blocks} == {"language"}
    (refused,) = ungated
    assert "q_norm normalizes across all heads" in refused.reason


def test_budgets_and_gates_by_tower():
    model = FAMILIES["clip"].build()
    gates = gating.inject_gates(model)
    objective = gating.ExactBudget(num_heads={"language": 3, "vision": 2})
    objective.attach(gates)
    kept = objective.kept(gates)
    per_block = [int(mask.sum()) for mask in kept.split(gates.block_sizes)]
    assert sum(per_block[:2]) == 3
    assert sum(per_block[2:]) == 2
    assert gates.block_groups == ["language", "language", "vision", "vision"]


def test_a_base_model_of_one_tower_is_one_tower():
    model = BertModel(FAMILIES["bert"].build().config)
    assert {block.tower for block in gating.find_attention_blocks(model)} == {"encoder"}
    assert torch.is_tensor(next(model.parameters()))
