"""Multiply-accumulates of gated units, counted in a forward pass."""

import torch

from gating.discovery.find import find_blocks
from gating.gates import create_gates
from gating.proof.probe import make_probe
from gating.pruning.measure import measure_macs
from tests.support.family_models import FAMILIES


def counted(name, batch=None, **options):
    model = FAMILIES[name].build()
    gates = create_gates(model, units=["heads", "neurons"], group_size=8, **options)
    blocks = find_blocks(model, units=["heads", "neurons"], group_size=8)
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
