"""Removal of given groups of neurons, and the models and requests that are refused."""

import dataclasses

import numpy as np
import peft
import pytest
import torch
import transformers

import gating
from gating.discovery import refusals_neurons
from gating.pruning.prune_report import num_parameters
from tests.support.family_models import FAMILIES
from tests.support.tiny_models import assert_same_state, batch_for, logits_of, state_of

NAMES = [f"encoder.layer.{layer}.output.dense" for layer in range(3)]
TINY = {"vocab_size": 99, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
BLOOM = {"vocab_size": 99, "hidden_size": 64, "n_layer": 2, "n_head": 4}


@pytest.fixture
def exact_bloom():
    """A BLOOM that multiplies slices of its weights, and never calls the down projection."""
    config = transformers.BloomConfig(**BLOOM, pretraining_tp=2, slow_but_exact=True)
    return transformers.BloomForCausalLM(config).eval()


def assert_refused(model, change, error, message):
    """Fail unless a change is refused and the model is as before."""
    state, text, cls = state_of(model), str(model), type(model)
    with pytest.raises(error, match=message):
        change(model)
    assert_same_state(model, state)
    assert str(model) == text
    assert type(model) is cls
    config = getattr(model, "config", None)
    assert not hasattr(config, "head_gating")


def test_parameters_and_neurons_are_counted_before_and_after(bert):
    before = num_parameters(bert)
    report = gating.prune_neurons(bert, {0: [2], -1: [0, 1, 2]}, group_size=20)
    assert report.kept_neurons == dict(zip(NAMES, [(0, 1), (0, 1, 2), ()], strict=True))
    assert (report.num_neurons_before, report.num_neurons) == (144, 144 - 8 - 48)
    # A row of 32 weights, a bias and a column of 32 for each neuron.
    assert report.num_parameters_before == before
    assert report.num_parameters == num_parameters(bert) == before - (8 + 48) * (2 * 32 + 1)
    assert (report.num_heads_before, report.num_heads) == (12, 12)


def test_pruned_equals_masked(model):
    batch = batch_for(model)
    gates = gating.inject_gates(model, units="neurons", group_size=16)
    mask = torch.tensor([1.0, 0, 1, 0, 0, 0, 1, 1, 1])
    with gates.fixed_at(mask):
        expected = logits_of(model, batch)
    gates.remove()
    gating.prune_neurons(model, {0: [1], 1: range(3)}, group_size=16)
    torch.testing.assert_close(logits_of(model, batch), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "request_of",
    [
        {1: [np.int64(0), np.int64(2)]},
        {np.int64(1): np.array([0, 2])},
        {torch.tensor(1): torch.tensor([0, 2])},
        {-2: {0, 2}},
        {NAMES[1]: (0, 2)},
        {1: [0], NAMES[1]: [2]},
    ],
)
def test_layers_and_groups_are_numbers_and_names(request_of, bert):
    assert gating.prune_neurons(bert, request_of, group_size=np.int64(16)).kept_neurons[NAMES[1]] == (1,)


def test_groups_keep_their_original_numbers_and_size(bert, make_model):
    gating.prune_neurons(bert, {1: [0]}, group_size=16)
    # All layers are counted in the groups of the earlier removal.
    report = gating.prune_neurons(bert, {1: [1], 0: [2]})
    assert report.kept_neurons == dict(zip(NAMES, [(0, 1), (2,), (0, 1, 2)], strict=True))
    at_once = make_model("bert")
    gating.prune_neurons(at_once, {1: [0, 1], 0: [2]}, group_size=16)
    assert_same_state(bert, state_of(at_once))
    assert bert.config.head_gating == at_once.config.head_gating
    assert gating.prune_neurons(bert, {1: [0]}).num_neurons == report.num_neurons


def test_smaller_groups_divide_those_of_an_earlier_removal(bert):
    gating.prune_neurons(bert, {1: [0]}, group_size=16)
    report = gating.prune_neurons(bert, {1: [2, 11]}, group_size=4)
    assert report.kept_neurons[NAMES[1]] == (4, 5, 6, 7, 8, 9, 10)
    assert report.kept_neurons[NAMES[0]] == tuple(range(12))
    with pytest.raises(ValueError, match=r"removed in groups of 4, which group_size=16 does not divide: give .*=4"):
        gating.prune_neurons(bert, {1: [1]}, group_size=16)


def test_heads_and_neurons_go_in_any_order(make_model):
    first, second = make_model("bert"), make_model("bert")
    gating.prune_heads(first, {0: [1], 1: range(4)})
    gating.prune_neurons(first, {0: [1], 2: range(3)}, group_size=16)
    gating.prune_neurons(second, {0: [1], 2: range(3)}, group_size=16)
    gating.prune_heads(second, {0: [1], 1: range(4)})
    assert_same_state(first, state_of(second))
    assert first.config.head_gating == second.config.head_gating
    assert first.config.head_gating["format"] == 2


def test_pruning_nothing_changes_nothing(bert):
    state = state_of(bert)
    assert gating.prune_neurons(bert, {}).num_neurons == 144
    assert gating.prune_neurons(bert, {0: []}).num_neurons == 144
    assert_same_state(bert, state)
    assert bert.config.head_gating["format"] == 1


@pytest.mark.parametrize(
    ("request_", "error", "message"),
    [
        ({0: [0], 7: [0]}, ValueError, "no layer 7.*feed-forward blocks are: encoder.layer.0.output.dense"),
        ({0: [0], -4: [0]}, ValueError, "no layer -4"),
        ({"encoder.layer.0.attention.self": [0]}, ValueError, "no layer 'encoder.layer.0.attention.self'"),
        ({0: [0], 1: [3]}, ValueError, "Layer 1 has groups 0 to 2; there is no group 3"),
        ({0: [0], 1: [-1]}, ValueError, "there is no group -1"),
        ({0: [0], 1: [1.0]}, TypeError, r"Groups are whole numbers; got \[1\.0\] for layer 1"),
        ({0: [True]}, TypeError, "Groups are whole numbers"),
        ({0: 2}, TypeError, "For each layer give a list of groups; got 2 for layer 0"),
        ({1.5: [2]}, TypeError, r"A layer is a number or the name of a feed-forward block; got 1\.5"),
        ([[0]], TypeError, r"Give the groups of each layer, \{layer: \[group, ...\]\}"),
    ],
    ids=str,
)
def test_a_bad_request_is_refused_and_changes_nothing(bert, request_, error, message):
    assert_refused(bert, lambda model: gating.prune_neurons(model, request_, group_size=16), error, message)


@pytest.mark.parametrize("group_size", [0, -8, 1.5, True, "16"])
def test_a_bad_group_size_is_refused(bert, group_size):
    message = "must be a positive whole number of neurons, such as 64"
    assert_refused(bert, lambda m: gating.prune_neurons(m, {0: [0]}, group_size=group_size), ValueError, message)


@pytest.mark.parametrize(
    ("family", "message"),
    [
        ("t5", r"name one of encoder\.block\.0\.layer\.1\.\S+\.wo, decoder\.block\.0\.layer\.2\.\S+\.wo"),
        ("bart", r"name one of encoder\.layers\.0\.fc2, decoder\.layers\.0\.fc2"),
        ("clip", r"name one of text_model\.\S+, vision_model\.\S+\.fc2"),
    ],
)
def test_a_layer_number_with_two_blocks_is_refused(family, message):
    assert_refused(
        FAMILIES[family].build(),
        lambda model: gating.prune_neurons(model, {0: [0]}, group_size=16),
        ValueError,
        f"Layer 0 has more than one feed-forward block: {message}",
    )


def test_a_model_with_gates_is_refused(bert):
    gating.inject_gates(bert)
    assert_refused(bert, lambda model: gating.prune_neurons(model, {0: [0]}), ValueError, r"The model has gates")


def change_both_ways(model):
    """Try gates, and expect their error, then the removal."""
    with pytest.raises(ValueError, match="Neurons cannot be removed"):
        gating.inject_gates(model, units="neurons")
    gating.prune_neurons(model, {0: [0]})


def test_a_norm_over_the_neurons_is_refused():
    config = transformers.BitNetConfig(**TINY, num_key_value_heads=4)
    assert_refused(
        transformers.BitNetForCausalLM(config),
        change_both_ways,
        ValueError,
        r"from layers\.0\.mlp\.down_proj \(BitNetMLP\): ffn_sub_norm \(BitNetRMSNorm\) between .* mixes all neurons",
    )


def test_a_convolution_between_the_projections_is_refused():
    config = transformers.SegformerConfig(hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1])
    assert_refused(
        transformers.SegformerForImageClassification(config),
        change_both_ways,
        ValueError,
        r"dwconv \(Conv2d\) between its projections mixes all neurons",
    )


def test_a_down_projection_that_is_never_called_is_refused(exact_bloom):
    assert_refused(exact_bloom, change_both_ways, ValueError, "slow_but_exact .* load the model with pretraining_tp=1")


def test_the_trial_finds_a_down_projection_that_is_never_called(exact_bloom, monkeypatch):
    monkeypatch.setattr(refusals_neurons, "_why_neurons_depend", lambda block: None)
    message = r"Without its removed neurons, BloomForCausalLM differs .* outputs differ .*Nothing was changed"
    assert_refused(exact_bloom, lambda model: gating.prune_neurons(model, {0: [0]}), ValueError, message)


def test_a_model_with_unknown_attention_loses_neurons():
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


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:torch.quantize_per_tensor")
def test_a_quantized_model_is_refused(bert):
    quantized = torch.ao.quantization.quantize_dynamic(bert, {torch.nn.Linear}, dtype=torch.qint8)
    for change in (
        lambda model: gating.inject_gates(model, units="neurons"),
        lambda model: gating.prune_neurons(model, {0: [0]}),
    ):
        with pytest.raises(ValueError, match=r"Neurons cannot be removed .* it is quantized .* remove neurons first"):
            change(quantized)


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
    [(PackedLinear, r"PackedLinear is neither nn\.Linear nor Conv1D"), (four_bits, "quantized .*uint8")],
)
def test_packed_neurons_are_refused_and_heads_beside_them_go(quantized, message):
    model = FAMILIES["llama"].build()
    for layer in model.model.layers:
        for name, linear in list(layer.mlp.named_children())[:3]:
            setattr(layer.mlp, name, quantized(linear))
    assert_refused(model, lambda model: gating.inject_gates(model, units="neurons"), ValueError, message)
    assert gating.prune_heads(model, {0: [0, 1]}).kept_heads["layers.0.self_attn"] == tuple(range(2, 8))


def test_a_projection_of_two_blocks_is_refused(bert):
    bert.bert.encoder.layer[1].output.dense = bert.bert.encoder.layer[0].output.dense
    message = r"layer\.1\.output\.dense .*shares a projection with encoder\.layer\.0\.output\.dense"
    assert_refused(bert, change_both_ways, ValueError, message)


def test_a_wrapper_that_passes_attributes_on_is_no_second_block(bert):
    bert.bert.encoder.layer[0] = torch.compile(bert.bert.encoder.layer[0], backend="eager")
    names = [block.name for block in gating.find_feed_forward_blocks(bert)]
    assert names == ["encoder.layer.0._orig_mod.output.dense", *NAMES[1:]]


def test_a_convolution_in_attention_is_beside_the_neurons():
    """The first removal leaves as many neurons as that convolution has outputs."""
    config = transformers.ConvBertConfig(**TINY, head_ratio=2, embedding_size=64)
    model = transformers.ConvBertModel(config).eval()
    gating.prune_neurons(model, {0: [0, 1]}, group_size=8)
    assert gating.prune_neurons(model, {1: [0]}).num_neurons == 72


def test_adapters_are_to_be_merged_first(bert):
    wrapped = peft.get_peft_model(bert, peft.LoraConfig(target_modules=["intermediate.dense"]))
    with pytest.raises(ValueError, match=r"wrapped in Peft.*to prune it, model\.merge_and_unload\(\)"):
        gating.prune_neurons(wrapped, {0: [0]})
    message = r"layer\.0\.intermediate\.dense has an adapter .*merge_and_unload\(\)"
    assert_refused(bert, lambda model: gating.prune_neurons(model, {0: [0]}), ValueError, message)
    assert gating.prune_neurons(wrapped.merge_and_unload(), {0: [0]}).num_neurons == 96


def test_wrapped_models_and_models_without_values_are_refused(bert):
    with pytest.raises(ValueError, match=r"wrapped in DataParallel: pass model\.module"):
        gating.prune_neurons(torch.nn.DataParallel(bert), {0: [0]})
    with pytest.raises(TypeError, match="got a str"):
        gating.prune_neurons("bert", {0: [0]})
    with pytest.raises(ValueError, match=r"is on the meta device\. Load its weights first"):
        gating.prune_neurons(bert.to("meta"), {0: [0]})


def test_a_model_without_feed_forward_blocks_is_refused():
    with pytest.raises(ValueError, match=r"No feed-forward block of Linear is known.*register_feed_forward_spec"):
        gating.prune_neurons(torch.nn.Linear(2, 2), {0: [0]})
