"""Models whose heads cannot be removed are refused with the reason, and not changed."""

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import gating
from tests.support.family_models import GROUPED, TEXT, Family
from tests.support.tiny_models import assert_refused


def build(name: str, **arguments):
    return Family(f"{name}ForCausalLM", f"{name}Config", {**GROUPED, **arguments}).build()


@pytest.mark.parametrize("discover", [False, True])
@pytest.mark.parametrize(
    ("name", "arguments", "reason"),
    [
        ("Olmo2", {}, "q_norm normalizes across all heads"),
        ("MiniMaxM2", {"num_local_experts": 2, "num_experts_per_tok": 1}, "q_norm normalizes across all heads"),
        ("BitNet", {"num_key_value_heads": 8}, "attn_sub_norm normalizes across all heads"),
        ("Mamba2", {"num_heads": 16, "head_dim": 8, "expand": 2, "n_groups": 1}, "state-space layer"),
        (
            "MiniMax",
            {"num_local_experts": 2, "layer_types": ["linear_attention"] * 3},
            "linear attention",
        ),
    ],
)
def test_dependent_heads_are_refused(name, arguments, reason, discover):
    kept = {} if "Mamba" not in name else {"vocab_size": 99, "hidden_size": 64, "num_hidden_layers": 2}
    family = Family(f"{name}ForCausalLM", f"{name}Config", {**(kept or GROUPED), **arguments}, ("eager",))
    model = family.build()
    for refused in (
        lambda: gating.inject_gates(model, discover=discover),
        lambda: gating.prune_heads(model, {0: [1]}, discover=discover),
    ):
        with pytest.raises(ValueError, match=reason):
            refused()


def test_talking_heads_are_refused():
    arguments = {**TEXT, "relative_attention": False, "type_vocab_size": 0, "talking_head": True}
    with pytest.raises(ValueError, match="talking heads"):
        gating.inject_gates(Family("DebertaModel", "DebertaConfig", arguments, ("eager",)).build())


class Adapter(nn.Module):
    """A wrapper like that of PEFT around a linear layer."""

    def __init__(self, base_layer):
        super().__init__()
        self.base_layer = base_layer
        self.weight = base_layer.weight


def _wrap(linear):
    return Adapter(linear)


def _quantize(linear):
    linear.weight = nn.Parameter(linear.weight.detach().to(torch.int8), requires_grad=False)
    return linear


def _normalize_weight(linear):
    return nn.utils.parametrizations.weight_norm(linear)


def _prune_bias(linear):
    linear.bias = nn.Parameter(torch.ones(linear.out_features))
    return prune.l1_unstructured(linear, "bias", 0.3)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_wrap, "layers.1.self_attn.*adapter.*merge"),
        (_quantize, "quantized"),
        (_normalize_weight, "parametrized"),
        (_prune_bias, "parametrized"),
        (lambda _: nn.Identity(), "Identity.* of another class"),
    ],
)
def test_projections_that_are_no_plain_linear_layers_are_refused(change, reason):
    model = build("Llama")
    attention = model.model.layers[1].self_attn
    attention.o_proj = change(attention.o_proj)
    if isinstance(attention.o_proj, nn.Identity):
        attention.o_proj.weight = nn.Parameter(torch.zeros(64, 64))
    before = model.model.layers[0].self_attn.q_proj.weight
    with pytest.raises(ValueError, match=reason):
        gating.prune_heads(model, {0: [0, 1]})
    assert model.model.layers[0].self_attn.q_proj.weight is before


@pytest.mark.parametrize(
    ("layer", "names", "other"),
    [
        (0, ("q_proj", "k_proj", "v_proj", "o_proj"), "layers.0.self_attn"),
        (0, ("v_proj",), "layers.0.self_attn"),
        (1, ("o_proj",), "itself"),
    ],
)
def test_attention_that_shares_projections_is_refused(layer, names, other):
    model = build("Llama")
    for name in names:
        shared = getattr(model.model.layers[layer].self_attn, "q_proj" if other == "itself" else name)
        setattr(model.model.layers[1].self_attn, name, shared)
    for change in (gating.inject_gates, lambda model: gating.prune_heads(model, {0: [1]})):
        assert_refused(model, change, ValueError, f"layers.1.self_attn .*shares a projection with {other}")
