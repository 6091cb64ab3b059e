"""Models whose neurons are removed or refused: norms, convolutions, quantized, adapted and wrapped ones."""

import dataclasses

import pytest
import torch
import transformers

import gating
from gating.discovery import refusals
from tests.support.family_models import FAMILIES
from tests.support.tiny_models import assert_refused

TINY = {"vocab_size": 99, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
BLOOM = {"vocab_size": 99, "hidden_size": 64, "n_layer": 2, "n_head": 4}


@pytest.fixture
def exact_bloom():
    """A BLOOM that multiplies slices of its weights, and never calls the down projection."""
    config = transformers.BloomConfig(**BLOOM, pretraining_tp=2, slow_but_exact=True)
    return transformers.BloomForCausalLM(config).eval()


def change_both_ways(model):
    """Try gates, and expect their error, then the removal."""
    with pytest.raises(ValueError, match="Neurons cannot be removed"):
        gating.inject_gates(model, units="neurons")
    gating.prune_neurons(model, {0: [0]})


def test_a_down_projection_that_is_never_called_is_refused(exact_bloom):
    assert_refused(exact_bloom, change_both_ways, ValueError, "slow_but_exact .* load the model with pretraining_tp=1")


def test_the_trial_finds_a_down_projection_that_is_never_called(exact_bloom, monkeypatch):
    monkeypatch.setattr(refusals, "why_dependent", lambda block: None)
    message = r"Without its removed neurons, BloomForCausalLM differs .* outputs differ .*Nothing was changed"
    assert_refused(exact_bloom, lambda model: gating.prune_neurons(model, {0: [0]}), ValueError, message)


def test_a_model_with_unknown_attention_loses_neurons(forget):
    forget("BloomAttention")
    model = transformers.BloomForCausalLM(transformers.BloomConfig(**BLOOM)).eval()
    report = gating.prune_neurons(model, {0: [0, 3], 1: range(4)})
    assert (report.num_neurons, report.num_heads) == (128, 0)


def test_a_model_that_amplifies_rounding_is_not_refused():
    """T5 does not scale its attention logits; sums in another order then change the outputs by 1e-4."""
    t5 = dataclasses.replace(
        FAMILIES["t5"], arguments={**FAMILIES["t5"].arguments, "d_model": 256, "d_ff": 1024, "d_kv": 64}, std=0.2
    )
    model = t5.build()
    groups = {block.name: range(0, 16, 2) for block in gating.find_feed_forward_blocks(model)}
    assert gating.prune_neurons(model, groups).num_neurons == 6 * 512


class PackedLinear(torch.nn.Module):
    """A layer with weights packed under another name, as those of AWQ and GPTQ."""

    def __init__(self, linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.register_buffer("qweight", linear.weight.detach().to(torch.int32))
        self.register_buffer("scales", linear.weight.detach())

    def forward(self, hidden):
        return torch.nn.functional.linear(hidden, self.scales)


def four_bits(linear):
    linear.weight = torch.nn.Parameter(torch.zeros(linear.weight.numel() // 2, 1, dtype=torch.uint8), False)
    return linear


@pytest.mark.parametrize(
    ("quantized", "message"),
    [(PackedLinear, "PackedLinear.* of another class"), (four_bits, "quantized")],
)
def test_packed_neurons_are_refused_and_heads_beside_them_go(quantized, message):
    model = FAMILIES["llama"].build()
    for layer in model.model.layers:
        for name, linear in list(layer.mlp.named_children())[:3]:
            setattr(layer.mlp, name, quantized(linear))
    assert_refused(model, lambda model: gating.inject_gates(model, units="neurons"), ValueError, message)
    assert gating.prune_heads(model, {0: [0, 1]}).kept_heads["layers.0.self_attn"] == tuple(range(2, 8))


def test_a_wrapper_that_passes_attributes_on_is_no_second_block(bert):
    bert.bert.encoder.layer[0] = torch.compile(bert.bert.encoder.layer[0], backend="eager")
    names = [block.name for block in gating.find_feed_forward_blocks(bert)]
    assert names == [
        "encoder.layer.0._orig_mod.output.dense",
        "encoder.layer.1.output.dense",
        "encoder.layer.2.output.dense",
    ]


def test_a_convolution_in_attention_is_beside_the_neurons():
    """The first removal leaves as many neurons as that convolution has outputs."""
    config = transformers.ConvBertConfig(**TINY, head_ratio=2, embedding_size=64)
    model = transformers.ConvBertModel(config).eval()
    gating.prune_neurons(model, {0: [0, 1]}, group_size=8)
    assert gating.prune_neurons(model, {1: [0]}).num_neurons == 72
