"""Measurements of models: work, also of gated units, units and size."""

import copy

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import gating
from gating.gates import create_gates
from gating.proof.probe import make_probe
from gating.pruning.measure import (
    cache_bytes_per_token,
    count_macs,
    measure_macs,
    weight_megabytes,
)
from gating.structure.layers import count_units, iter_blocks
from tests.support.family_models import FAMILIES
from tests.support.tiny_models import batch_for
from tests.support.versions import HAS_GROUPED_MM, run_experts_on_cpu


def test_heads_are_counted_before_and_after_removal(model):
    assert count_units(model, "heads") == 12
    gating.prune_heads(model, {0: [1], 1: range(4)})
    assert count_units(model, "heads") == 7


def test_megabytes_are_those_of_the_file(bert, tmp_path):
    save_file(bert.state_dict(), tmp_path / "model.safetensors")
    # The file has a table of contents of some kilobytes.
    size = (tmp_path / "model.safetensors").stat().st_size / 1e6
    assert weight_megabytes(bert) == pytest.approx(size, abs=0.01)


def test_shared_weights_count_once():
    layer = nn.Linear(10, 10, bias=False)
    assert weight_megabytes(nn.ModuleList([layer, layer])) == pytest.approx(400e-6)


def test_half_precision_takes_half_the_space(bert):
    size = weight_megabytes(bert)
    assert weight_megabytes(bert.to(torch.bfloat16)) == pytest.approx(size / 2)


def test_multiply_accumulates_fall_by_those_of_the_removed_gates(bert):
    batch = batch_for(bert)
    gates = create_gates(bert, units=("heads", "neurons"), group_size=8)
    of_gates = measure_macs(bert, gates, list(iter_blocks(bert, "heads", "neurons", group_size=8)), batch)
    dense = count_macs(bert, batch)
    assert float(of_gates.sum()) < dense
    compact = copy.deepcopy(bert)
    gating.prune_heads(compact, {0: [1, 2], 1: range(4)})
    gating.prune_neurons(compact, {0: [0], 2: [3, 5]}, group_size=8)
    by_block = dict(zip(gates.block_names, of_gates.split(gates.block_sizes), strict=True))
    heads = by_block["encoder.layer.0.attention.self"][1:3].sum() + by_block["encoder.layer.1.attention.self"].sum()
    neurons = by_block["encoder.layer.0.output.dense"][0] + by_block["encoder.layer.2.output.dense"][[3, 5]].sum()
    assert dense - count_macs(compact, batch) == float(heads + neurons)


@pytest.mark.parametrize("family", ["llama", "deberta", "vit", "t5"])
def test_multiply_accumulates_are_those_of_linear_layers_and_the_rest(family):
    model = FAMILIES[family].build()
    batch = make_probe(model)
    counted = [0]

    def count(layer, inputs, _):
        counted[0] += inputs[0][..., 0].numel() * layer.weight.numel()

    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            layer.register_forward_hook(count)
    assert count_macs(model, batch) > counted[0] / 2 > 0.5 * count_macs(model, batch)


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
def test_multiply_accumulates_do_not_depend_on_the_implementation_of_attention(family):
    model = FAMILIES[family].build()
    batch = make_probe(model)
    counts = []
    for implementation in ("eager", "sdpa"):
        model.set_attn_implementation(implementation)
        counts.append(count_macs(model, batch))
    assert counts[0] == counts[1]


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_experts_count_by_the_tokens_that_they_get(family):
    model = FAMILIES[family].build()
    batch, counts = make_probe(model), []
    for implementation in ("eager", "batched_mm", *(["grouped_mm"] if HAS_GROUPED_MM else [])):
        model.set_experts_implementation(implementation)
        counts.append(count_macs(model, batch))
    assert len(set(counts)) == 1
    run_experts_on_cpu(model)
    gates = create_gates(model, units="neurons", group_size=8)
    of_gates = measure_macs(model, gates, list(iter_blocks(model, "neurons", group_size=8)), batch)
    gating.prune_neurons(model, {0: [0, 2]}, group_size=8)
    assert counts[0] - count_macs(model, batch) == float(of_gates[[0, 2]].sum())


def test_convolutions_count():
    class Convolution(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(3, 5, kernel_size=2, stride=2)

        def forward(self, x):
            return self.layer(x)

    assert count_macs(Convolution(), {"x": torch.ones(7, 3, 8, 8)}) == 16 * 5 * 3 * 4


@pytest.mark.parametrize("family", ["gpt2", "llama", "phi3", "t5", "deepseek_v2", "deepseek_v3"])
def test_bytes_of_the_cache_are_those_of_keys_and_values(family):
    """DeepSeek's are latents."""
    model = FAMILIES[family].build()
    layer = "decoder.block.0.layer.0.SelfAttention" if family == "t5" else 0
    gating.prune_heads(model, {layer: range(2)})
    batch = make_probe(model)
    with torch.no_grad():
        cache = model(**batch, use_cache=True).past_key_values
    layers = getattr(cache, "self_attention_cache", cache).layers
    size = sum(tensor.nbytes for layer in layers for tensor in (layer.keys, layer.values))
    num_tokens = batch.get("decoder_input_ids", batch["input_ids"]).numel()
    assert cache_bytes_per_token(model) == size / num_tokens


def test_encoders_cache_nothing(bert):
    assert cache_bytes_per_token(bert) == 0


def test_neurons_are_counted_before_and_after_removal(bert):
    before = count_units(bert, "neurons")
    gating.prune_neurons(bert, {0: [0, 1]}, group_size=8)
    assert count_units(bert, "neurons") == before - 16
    assert count_units(nn.Linear(2, 2), "neurons") == 0


def counted(name, batch=None, **options):
    model = FAMILIES[name].build()
    gates = create_gates(model, units=["heads", "neurons"], group_size=8, **options)
    blocks = list(iter_blocks(model, "heads", "neurons", group_size=8))
    macs = measure_macs(model, gates, blocks, make_probe(model) if batch is None else batch)
    return model, gates, dict(zip(gates.block_names, macs.split(gates.block_sizes), strict=True))


def test_heads_and_groups_of_bert_are_counted_by_hand():
    _, _, macs = counted("bert", {"input_ids": torch.ones(2, 10, dtype=torch.long)})
    # 64 hidden features, heads of 16: four projections, queries times keys, probabilities times values.
    assert set(macs["encoder.layer.0.attention.self"].tolist()) == {10 * 4 * 64 * 16 + 2 * 16 * 10 * 10}
    assert set(macs["encoder.layer.0.output.dense"].tolist()) == {10 * 2 * 64 * 8}


def test_a_module_that_serves_several_layers_counts_each_use():
    model, _, macs = counted("albert-1group", {"input_ids": torch.ones(1, 10, dtype=torch.long)})
    uses = model.config.num_hidden_layers
    assert uses == 3
    block = next(name for name in macs if name.endswith("ffn_output"))
    assert macs[block][0] == uses * 10 * 2 * 64 * 8


def test_encoder_decoder_and_cross_attention_have_their_own_lengths():
    batch = {
        "input_ids": torch.ones(1, 12, dtype=torch.long),
        "decoder_input_ids": torch.ones(1, 5, dtype=torch.long),
    }
    _, gates, macs = counted("t5", batch)
    kinds = dict(zip(gates.block_names, gates.block_kinds, strict=True))
    width, hidden = 8, 64
    expected = {
        "encoder": 12 * 4 * hidden * width + 2 * width * 12 * 12,
        "decoder": 5 * 4 * hidden * width + 2 * width * 5 * 5,
        "cross": 5 * 4 * hidden * width + 2 * width * 5 * 12,
    }
    for name, kind in kinds.items():
        if kind != "feed_forward":
            assert set(macs[name].tolist()) == {expected[kind]}, name
    assert {float(macs[name][0]) for name in kinds if kinds[name] == "feed_forward"} == {
        12 * 2 * hidden * 8,
        5 * 2 * hidden * 8,
    }


def test_blocks_that_a_batch_does_not_reach_keep_their_number():
    _, gates, macs = counted("clip", {"pixel_values": torch.randn(1, 3, 16, 16), "input_ids": torch.ones(1, 4).long()})
    assert all((values > 0).all() for values in macs.values())
    assert sum(map(len, macs.values())) == len(gates.log_alpha)


def test_gates_of_groups_of_queries_count_their_heads_together():
    model = FAMILIES["llama"].build()
    together, apart = (create_gates(model, group_queries=grouped) for grouped in (True, False))
    assert together.macs_per_gate.sum() == apart.macs_per_gate.sum()
    assert together.parameters_per_gate.sum() == apart.parameters_per_gate.sum()
    attention = sum(p.numel() for name, p in model.named_parameters() if "self_attn" in name and "norm" not in name)
    assert together.parameters_per_gate.sum() == attention
