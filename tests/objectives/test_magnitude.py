"""L1 norms of the rows and columns that belong to a head."""

import pytest
import torch

import gating
from gating.discovery.find import find_feed_forward_blocks
from gating.objectives import Magnitude
from gating.structure.sizes import head_norms, neuron_norms
from tests.support.family_models import FAMILIES


def l1(*parts):
    return sum(part.detach().abs().sum().item() for part in parts)


def test_norm_is_that_of_the_rows_and_columns_of_a_head(bert):
    block = gating.find_attention_blocks(bert)[1]
    layer = bert.bert.encoder.layer[1].attention
    for head, norm in enumerate(head_norms(block).tolist()):
        rows = slice(8 * head, 8 * head + 8)
        projections = (layer.self.query.weight, layer.self.key.weight, layer.self.value.weight)
        by_hand = l1(*(weight[rows] for weight in projections), layer.output.dense.weight[:, rows])
        assert norm == pytest.approx(by_hand, rel=1e-5)


def test_weights_of_another_orientation_and_order():
    model = FAMILIES["gpt2"].build()
    block = gating.find_attention_blocks(model)[0]
    attention, width = block.module, block.head_dim
    hidden = block.num_heads * width
    for head, norm in enumerate(head_norms(block).tolist()):
        starts = [part * hidden + head * width for part in range(3)]
        by_hand = l1(
            *(attention.c_attn.weight[:, start : start + width] for start in starts),
            attention.c_proj.weight[head * width : (head + 1) * width],
        )
        assert norm == pytest.approx(by_hand, rel=1e-5)


@pytest.mark.parametrize("group_queries", [True, False])
def test_shared_keys_and_values_are_divided_among_their_heads(group_queries):
    model = FAMILIES["llama"].build()
    gates = gating.inject_gates(model, group_queries=group_queries)
    attention = model.model.layers[0].self_attn
    scores = Magnitude().scores(gates)
    by_hand = []
    for head in range(8):
        rows, shared = slice(8 * head, 8 * head + 8), slice(8 * (head // 2), 8 * (head // 2) + 8)
        own = l1(attention.q_proj.weight[rows], attention.o_proj.weight[:, rows])
        by_hand.append(own + l1(attention.k_proj.weight[shared], attention.v_proj.weight[shared]) / 2)
    if group_queries:
        by_hand = [(a + b) / 2 for a, b in zip(by_hand[::2], by_hand[1::2], strict=True)]
    assert scores[: len(by_hand)].tolist() == pytest.approx(by_hand, rel=1e-5)


def test_padding_is_no_head():
    model = FAMILIES["llama"].build()
    gating.prune_heads(model, {0: [1]})
    gates = gating.inject_gates(model)
    first = gating.find_attention_blocks(model)[0]
    assert Magnitude().scores(gates)[0].item() == pytest.approx(head_norms(first)[0].item())


@pytest.mark.parametrize("family", ["t5", "whisper", "deberta-v2", "modernbert", "albert"])
def test_every_layout_has_norms(family):
    gates = gating.inject_gates(FAMILIES[family].build())
    scores = Magnitude().scores(gates)
    assert scores.shape == gates.log_alpha.shape
    assert (scores > 0).all()


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "phi3"])
def test_the_norm_of_a_neuron_is_that_of_its_rows_and_column(family):
    model = FAMILIES[family].build()
    block = find_feed_forward_blocks(model)[0]
    norms = neuron_norms(block)
    down = block.output_projection.weight if family == "gpt2" else block.output_projection.weight.T
    for neuron in (0, 1, block.num_neurons - 1):
        by_hand = [down[neuron]]
        for up, layout in block.ups():
            rows = up.weight.T if family == "gpt2" else up.weight
            by_hand += [rows[neuron]] + ([rows[block.num_neurons + neuron]] if layout == "halves" else [])
        assert norms[neuron].item() == pytest.approx(l1(*by_hand), rel=1e-5)


def test_norms_of_both_kinds_are_those_of_a_parameter_whatever_the_cost():
    model = FAMILIES["llama"].build()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.5)
    gates = gating.inject_gates(model, units=("heads", "neurons"), group_size=20)
    assert len(set(gates.counts["neurons"])) > 2
    for sizes in (None, gates.macs_per_gate):
        torch.testing.assert_close(Magnitude().scores(gates, sizes), torch.full((len(gates.log_alpha),), 0.5))


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_the_norm_of_a_neuron_of_experts_is_that_of_all_of_them(family):
    model = FAMILIES[family].build()
    block = find_feed_forward_blocks(model)[0]
    experts, width = block.module, block.num_neurons
    is_gpt = family == "gpt_oss"
    ups = experts.gate_up_proj.transpose(1, 2) if is_gpt else experts.gate_up_proj
    downs = experts.down_proj.transpose(1, 2) if is_gpt else experts.down_proj
    for neuron, norm in enumerate(neuron_norms(block).tolist()):
        rows = (2 * neuron, 2 * neuron + 1) if is_gpt else (neuron, width + neuron)
        by_hand = l1(*(ups[:, row] for row in rows), downs[:, :, neuron])
        assert norm == pytest.approx(by_hand, rel=1e-5)
