"""Heads with more rows in some projections than columns in the output projection: latent attention, output gates."""

import pytest
import torch
from torch import nn

import gating
from gating.discovery.find import find_attention_blocks
from gating.gates import create_gates
from gating.proof.outputs import forward_outputs, max_relative_difference
from gating.proof.probe import make_probe
from gating.pruning.measure import count_macs, measure_macs
from gating.structure.sizes import head_norms
from tests.support.family_models import FAMILIES, TEXT, Family
from tests.support.masked_models import generate_all, make_pattern, prune, units_masked
from tests.support.more_family_models import INDEXED, LATENT

# Hybrid models have layers without gates.
pytestmark = [pytest.mark.usefixtures("quiet"), pytest.mark.filterwarnings("ignore:.*get no gates")]

WIDE = ["deepseek_v2", "deepseek_v3", "bailing_hybrid", "qwen3_next", "mimo_v2_flash"]
# Layers pass the keys that their index chooses to the next ones.
SHARED_INDEX = {"GlmMoeDsa": {"indexer_types": ["full", "shared", "full"]}, "HYV4": {}}


def build(name, arguments):
    arguments = {**TEXT, **LATENT, **INDEXED, "first_k_dense_replace": 3, "mlp_layer_types": ["dense"] * 3, **arguments}
    return Family(f"{name}ForCausalLM", f"{name}Config", arguments, ("eager",)).build()


def test_the_latent_stays_whole():
    model = FAMILIES["deepseek_v3"].build()
    gating.prune_heads(model, {0: [1]})
    attention = model.model.layers[0].self_attn
    shapes = {name: tuple(child.weight.shape) for name, child in attention.named_children() if "proj" in name}
    assert shapes == {
        "q_a_proj": (16, 64),
        "q_b_proj": (3 * (6 + 8), 16),
        "kv_a_proj_with_mqa": (12 + 8, 64),
        "kv_b_proj": (3 * (6 + 10), 12),
        "o_proj": (64, 3 * 10),
    }


def test_a_head_takes_its_output_gate_along():
    model = FAMILIES["qwen3_next"].build()
    before = model.model.layers[0].self_attn.q_proj.weight.unflatten(0, (8, 2, 8))
    gating.prune_heads(model, {0: [0, 1, 4, 5]})
    after = model.model.layers[0].self_attn.q_proj.weight.unflatten(0, (4, 2, 8))
    assert torch.equal(after, before[[2, 3, 6, 7]])


@pytest.mark.parametrize("family", ["qwen3_next", "qwen3_5"])
def test_heads_of_linear_attention_take_their_channels_and_states_along(family):
    model = FAMILIES[family].build()
    gates = create_gates(model)
    size = gates.gate_sizes[sum(gates.block_sizes[:1])]
    # Two heads of 8 features share a key of 8 features; the kernel of the convolution has 3 entries.
    assert size.num_units == 2
    assert size.num_parameters == 64 * (2 * 8 + 2 * 2 * 8 + 2 * 2) + 3 * (2 * 8 + 2 * 8) + 64 * 2 * 8
    assert size.macs(10) == 10 * (size.num_parameters + 3 * 2 * 8 * 8)
    parameters, of_states = model.num_parameters(), 2 * 2
    gating.prune_heads(model, {1: [0, 1]})
    assert parameters - model.num_parameters() == size.num_parameters + of_states
    mixer = model.model.layers[1].linear_attn
    assert (mixer.num_k_heads, mixer.num_v_heads, mixer.key_dim, mixer.value_dim) == (1, 2, 8, 16)
    assert (mixer.conv1d.groups, mixer.conv1d.weight.shape) == (32, (32, 1, 3))


@pytest.mark.parametrize("family", ["qwen3_next", "qwen3_5"])
@pytest.mark.parametrize("seed", [0, 1, 2, None])
def test_prompts_with_padding_generate_the_same_with_linear_attention(family, seed):
    model = FAMILIES[family].build()
    gates = gating.inject_gates(model, group_queries=False)
    pattern = make_pattern(gates, seed)
    inputs = make_probe(model)["input_ids"].clone()
    inputs[0, :4] = model.config.pad_token_id
    ways = {"greedy": {"attention_mask": (inputs != model.config.pad_token_id).long()}}
    with gates.fixed_at(pattern):
        masked = generate_all(model, {"input_ids": inputs}, ways)
    prune(model, gates, pattern)
    assert generate_all(model, {"input_ids": inputs}, ways) == masked


@pytest.mark.parametrize("family", WIDE)
def test_multiply_accumulates_and_parameters_fall_by_those_of_the_removed_gates(family):
    model = FAMILIES[family].build()
    gates, blocks, batch = create_gates(model), find_attention_blocks(model), make_probe(model)
    removed = measure_macs(model, gates, blocks, batch)[0]
    macs, parameters = count_macs(model, batch), model.num_parameters()
    gating.prune_heads(model, {0: blocks[0].head_ids[: gates.gate_sizes[0].num_units]})
    assert macs - count_macs(model, batch) == float(removed)
    of_sinks = 0 if getattr(blocks[0].module, "sinks", None) is None else gates.gate_sizes[0].num_units
    assert parameters - model.num_parameters() == float(gates.parameters_per_gate[0]) + of_sinks


def test_norms_of_heads_are_those_of_all_their_entries():
    block = find_attention_blocks(FAMILIES["deepseek_v3"].build())[0]
    attention = block.module
    with torch.no_grad():
        parts = (
            attention.q_b_proj.weight.unflatten(0, (4, 14)),
            attention.kv_b_proj.weight.unflatten(0, (4, 16)),
            attention.o_proj.weight.T.unflatten(0, (4, 10)),
        )
        expected = sum(part.abs().sum((1, 2)) for part in parts)
        torch.testing.assert_close(head_norms(block), expected)


@pytest.mark.parametrize("name", SHARED_INDEX)
def test_layers_that_share_an_index_keep_a_head_without_effect(name):
    model = build(name, SHARED_INDEX[name])
    blocks, probe = find_attention_blocks(model), make_probe(model)
    kept = {block.name: block.head_ids[1::2] for block in blocks}
    with units_masked(blocks, kept):
        masked = forward_outputs(model, probe)
    gating.prune_heads(model, {name: [0, 2] for name in kept})
    assert max_relative_difference(masked, forward_outputs(model, probe)) <= 1e-5
    blocks = find_attention_blocks(model)
    with units_masked(blocks, {block.name: () if block is blocks[0] else block.head_ids for block in blocks}):
        masked = forward_outputs(model, probe)
    assert gating.prune_heads(model, {0: [1, 3]}).kept_heads[blocks[0].name] == ()
    assert max_relative_difference(masked, forward_outputs(model, probe)) <= 1e-5
    assert len(find_attention_blocks(model)[0].head_slots) == 1


def test_queries_and_gates_of_one_projection_of_two_latents():
    model = build("AXK2", {})
    blocks, probe = find_attention_blocks(model), make_probe(model)
    kept = {block.name: block.head_ids[1::2] if index else () for index, block in enumerate(blocks)}
    with units_masked(blocks, kept):
        masked = forward_outputs(model, probe)
    gating.prune_heads(model, {block.name: set(block.head_ids) - set(kept[block.name]) for block in blocks})
    assert max_relative_difference(masked, forward_outputs(model, probe)) <= 1e-5


def test_rows_that_heads_cannot_share_are_an_error_before_any_change():
    model = FAMILIES["llama"].build()
    attention = model.model.layers[1].self_attn
    attention.q_proj = nn.Linear(64, 68, bias=False)
    with pytest.raises(ValueError, match=r"layers.1.self_attn"):
        gating.prune_heads(model, {1: [0, 1]})
    assert attention.k_proj.weight.shape == (32, 64)
