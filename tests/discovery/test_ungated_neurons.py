"""Feed-forward modules without gates are named with the reason, and neurons that depend on each other are found."""

import warnings

import pytest
import torch
from torch import nn
from transformers import Gemma3nForCausalLM, Gemma3nTextConfig

import gating
from gating.discovery.find import search_blocks
from gating.proof.outputs import forward_outputs, max_relative_difference
from gating.proof.probe import make_probe
from tests.discovery.test_ungated import TwoTowers
from tests.support.family_models import ZOO
from tests.support.masked_models import units_masked

SPARSE = {
    "vocab_size": 99,
    "vocab_size_per_layer_input": 99,
    "hidden_size": 32,
    "hidden_size_per_layer_input": 8,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 64,
    "num_kv_shared_layers": 0,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "laurel_rank": 4,
    "altup_num_inputs": 2,
}


class OddMLP(nn.Module):
    """A feed-forward module with names of its own."""

    def __init__(self):
        super().__init__()
        self.grow = nn.Linear(64, 96)
        self.shrink = nn.Linear(96, 64)

    def forward(self, hidden_states):
        return self.shrink(self.grow(hidden_states).relu())


class Projector(nn.Module):
    """A module that maps to a width and back, which its class name does not say."""

    def __init__(self):
        super().__init__()
        self.grow = nn.Linear(64, 96)
        self.shrink = nn.Linear(96, 64)


class NarrowMLP(nn.Module):
    """A module with the name of a feed-forward module that ends at another width."""

    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(64, 32)
        self.fc2 = nn.Linear(32, 16)


@pytest.fixture
def towers():
    return TwoTowers(OddMLP(), OddMLP(), Projector(), NarrowMLP()).eval()


@pytest.mark.parametrize(
    "function", [gating.find_feed_forward_blocks, lambda model: gating.inject_gates(model, units="neurons")]
)
def test_modules_without_gates_are_named_with_the_reason(towers, function):
    with pytest.warns(UserWarning, match="keep all neurons") as caught:
        function(towers)
    message = str(caught[0].message)
    assert "vision_tower.0 and 1 more (OddMLP): its layers fit no registered layout; discover=True" in message
    assert "vision_tower.2 (Projector): its layers fit no registered layout" in message
    assert "vision_tower.3 (NarrowMLP): " in message
    assert "exclude=['vision_tower.0']" in message


@pytest.mark.parametrize("options", [{"towers": ["language"]}, {"exclude": ["vision_tower.*"]}])
def test_what_a_user_leaves_out_is_not_named(towers, options):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        blocks = gating.find_feed_forward_blocks(towers, **options)
        gates = gating.inject_gates(towers, units="neurons", **options)
    assert gates.block_names == [block.name for block in blocks]
    assert gates.ungated == ()


def test_discovery_gates_what_it_finds_and_names_the_rest(towers):
    blocks, ungated = search_blocks(towers, "neurons", discover=True)
    assert [block.name for block in blocks[-2:]] == ["vision_tower.0.shrink", "vision_tower.1.shrink"]
    assert [one.class_name for one in ungated] == ["Projector", "NarrowMLP"]
    assert "the outputs for this batch do not depend on" in ungated[0].reason


@pytest.mark.parametrize(
    ("name", "classes"),
    [
        ("qwen3_vl", {"Qwen3VLTextMLP", "Qwen3VLVisionMLP"}),
        ("qwen3_5-images", {"Qwen3_5MLP", "Qwen3_5VisionMLP"}),
        ("parakeet", {"ParakeetEncoderFeedForward"}),
        ("lfm3", {"Lfm3MLP"}),
        ("moshi", {"MoshiGatingMLP"}),
    ],
)
def test_layers_of_all_towers_have_gates(name, classes):
    model = ZOO[name].build()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        blocks = gating.find_feed_forward_blocks(model, group_size=16)
    assert {type(block.module).__name__ for block in blocks} == classes
    probe = make_probe(model)
    kept = {block.name: [g for g in block.group_ids if (g + i) % 3] for i, block in enumerate(blocks)}
    kept[blocks[0].name] = []
    with units_masked(blocks, kept):
        expected = forward_outputs(model, probe)
    removed = {block.name: set(block.group_ids) - set(kept[block.name]) for block in blocks}
    gating.prune_neurons(model, removed, group_size=16)
    assert max_relative_difference(expected, forward_outputs(model, probe)) < 1e-5


def test_neurons_behind_a_cutoff_by_their_mean_get_no_gates():
    model = Gemma3nForCausalLM(Gemma3nTextConfig(**SPARSE, activation_sparsity_pattern=[0.95, 0.95, 0.0, 0.0])).eval()
    with pytest.warns(UserWarning, match="layers.0.mlp.down_proj"):
        gates = gating.inject_gates(model, units="neurons", group_size=8)
    assert gates.block_names == ["layers.2.mlp.down_proj", "layers.3.mlp.down_proj"]
    with torch.no_grad():
        gates.log_alpha.copy_(torch.where(torch.arange(16) % 3 == 0, -9.0, 9.0))
    assert gating.finalize(model, gates).max_difference < 1e-5
    with pytest.raises(ValueError, match="feed-forward blocks"):
        gating.prune_neurons(model, {0: [1]})
