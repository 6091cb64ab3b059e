"""Experts whose weights are parameters: the same neurons in each, gated at the activation and removed exactly."""

from dataclasses import replace

import peft
import pytest
import torch
from torch import nn

import gating
from gating.compact.stock import stock_model
from gating.gates import create_gates
from gating.objectives.rankings import Importance, Magnitude
from gating.proof.outputs import forward_outputs, max_relative_difference
from gating.proof.probe import make_probe
from gating.pruning.measure import measure_macs
from gating.structure.feed_forward import ExpertsBlock
from gating.structure.layers import iter_blocks
from tests.support.expert_models import EXPERTS
from tests.support.masked_models import check_generation, compact, finalized, make_pattern, prune, without_gradient
from tests.support.tiers import tiered
from tests.support.versions import HAS_GROUPED_MM

pytestmark = pytest.mark.usefixtures("quiet")

# Masked and compact models add the same numbers in another order.
TOLERANCE = 1e-5
BOTH = ("heads", "neurons")
# Of the models with experts in one parameter.
STACKED = [name for name in EXPERTS if name not in ("switch_transformers", "nllb_moe")]
# An activation that is a module, a method, and a function.
ACTIVATIONS = ["mixtral", "gpt_oss", "lfm2_moe"]


def experts_of(model):
    blocks = gating.find_feed_forward_blocks(model, group_size=8)
    return [block for block in blocks if isinstance(block, ExpertsBlock)]


@pytest.mark.parametrize("name", tiered(EXPERTS))
def test_compact_equals_masked(name):
    for seed in (0, 1, None):
        model, masked, probe = compact(EXPERTS[name], seed, units="neurons")
        assert max_relative_difference(masked, forward_outputs(model, probe)) <= TOLERANCE
        assert without_gradient(model, probe) <= without_gradient(EXPERTS[name].build(), probe)


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss", "deepseek_v3", "nemotron_h", "lfm2_moe"])
def test_each_implementation_of_experts_is_exact(name):
    for implementation in ("eager", "batched_mm", "grouped_mm"):
        model = EXPERTS[name].build()
        if implementation == "grouped_mm" and not HAS_GROUPED_MM:
            pytest.skip(f"torch {torch.__version__} has no grouped_mm for the CPU")
        model.set_experts_implementation(implementation)
        probe, gates = make_probe(model), gating.inject_gates(model, units="neurons", group_size=8)
        pattern = make_pattern(gates, 0)
        with gates.fixed_at(pattern):
            masked = forward_outputs(model, probe)
        prune(model, gates, pattern)
        assert model.config._experts_implementation == implementation
        assert max_relative_difference(masked, forward_outputs(model, probe)) <= TOLERANCE


def test_each_group_leaves_a_width_for_grouped_products_in_half_precision():
    model = EXPERTS["mixtral"].build().bfloat16()
    for group in range(6):
        gating.prune_neurons(model, {0: [group]}, group_size=8)
        assert forward_outputs(model, make_probe(model))[0].isfinite().all()


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss"])
def test_generates_the_same(name):
    check_generation(EXPERTS[name], 0, units=BOTH)


@pytest.mark.parametrize("name", tiered(STACKED))
def test_fractions_are_folded(name):
    model, masked, probe = finalized(EXPERTS[name], 2, units="neurons")
    assert max_relative_difference(masked, forward_outputs(model, probe)) <= TOLERANCE


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_gates_leave_no_trace_when_they_are_removed(name):
    model = EXPERTS[name].build()
    text, attributes = str(model), {name: dict(vars(module)) for name, module in model.named_modules()}
    gates = gating.inject_gates(model, units="neurons", group_size=8)
    assert "(gate): BlockGate()" in str(model)
    gates.remove()
    assert str(model) == text
    for name, module in model.named_modules():
        assert set(vars(module)) == set(attributes[name])
        assert all(
            vars(module)[key] is attributes[name][key] for key in ("act_fn", "_apply_gate") if key in vars(module)
        )
        assert not module._forward_hooks


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_gates_learn(name):
    model = EXPERTS[name].build().train()
    gates = gating.inject_gates(model, units="neurons", group_size=8, init_prob_open=0.5)
    probe = make_probe(model)
    torch.manual_seed(0)
    model(**probe).logits.square().mean().backward()
    learned = gates.log_alpha.grad.clone()
    assert (learned != 0).float().mean() > 0.3
    assert all(part.any() for part in learned.split(gates.block_sizes))


# Of PEFT 0.18, about the parameters of experts.
@pytest.mark.filterwarnings("ignore:Unsupported layer type")
def test_gates_outlive_adapters_of_the_parameters():
    model = EXPERTS["mixtral"].build()
    parameters = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    config = peft.LoraConfig(target_modules=["q_proj"], target_parameters=parameters, r=2, init_lora_weights=False)
    adapted = peft.get_peft_model(model, config)
    gates = gating.inject_gates(adapted.get_base_model(), units="neurons", group_size=8)
    assert gates.block_names[0] == "layers.0.mlp.experts"
    with torch.no_grad():
        gates.log_alpha[::2] = -9.0
    probe = make_probe(model)
    expected = forward_outputs(model, probe)
    merged = adapted.merge_and_unload()
    assert gating.finalize(merged, gates).num_neurons == 3 * 24
    assert max_relative_difference(expected, forward_outputs(merged, probe)) <= TOLERANCE


def test_the_record_has_the_experts_of_a_layer_once():
    model = EXPERTS["qwen2_moe"].build()
    gating.prune_neurons(model, {"layers.1.mlp.experts": [0, 5]}, group_size=8)
    record = model.config.to_dict()["head_gating"]
    assert record["units"] == {
        "layers.1.mlp.experts": {"width_before": 48, "group_size": 8, "kept_groups": [1, 2, 3, 4]}
    }
    assert list(record["modules"]) == ["layers.1.mlp.experts"]
    assert [block.group_ids for block in experts_of(model)] == [tuple(range(6)), (1, 2, 3, 4), tuple(range(6))]


def test_equally_many_neurons_in_all_layers_give_a_stock_model():
    model = EXPERTS["mixtral"].build()
    gating.prune_neurons(model, {0: [0], 1: [3], 2: [5]}, group_size=8)
    assert stock_model(model).config.intermediate_size == 40


def test_experts_that_cannot_be_gated_are_refused():
    model = EXPERTS["mixtral"].build()
    model.config._experts_implementation = "sonicmoe"
    with pytest.raises(ValueError, match=r"set_experts_implementation\('grouped_mm'\)"):
        gating.find_feed_forward_blocks(model)
    model.config._experts_implementation = "eager"
    experts = model.model.layers[1].mlp.experts
    experts._is_expert_parallel = True
    with pytest.raises(ValueError, match=r"layers.1.mlp.experts"):
        gating.find_feed_forward_blocks(model)
    experts._is_expert_parallel = False
    experts.down_proj = nn.Parameter(experts.down_proj.to(torch.float8_e4m3fn), requires_grad=False)
    with pytest.raises(ValueError, match=r"layers.1.mlp.experts"):
        gating.find_feed_forward_blocks(model)


@pytest.mark.parametrize(("name", "per_token"), [("mixtral", 2), ("gpt_oss", 2), ("nemotron_h", 2), ("llama4", 4)])
def test_sizes_of_gates_count_all_parameters_and_the_experts_of_a_token(name, per_token):
    model = EXPERTS[name].build()
    gates, blocks = (
        create_gates(model, units="neurons", group_size=8),
        list(iter_blocks(model, "neurons", group_size=8)),
    )
    index = next(i for i, block in enumerate(blocks) if isinstance(block, ExpertsBlock))
    first = sum(gates.block_sizes[:index])
    vectors = 2 if name == "nemotron_h" else 3
    assert blocks[index].experts_per_token == per_token
    assert gates.macs_per_gate[first] == 128 * per_token * 8 * vectors * 64
    measured = measure_macs(model, gates, blocks, make_probe(model))
    length = make_probe(model)["input_ids"].shape[1]
    assert measured[first] == gates.macs_per_gate[first] / 128 * length
    report = gating.prune_neurons(model, {blocks[index].name: [0]}, group_size=8)
    assert report.num_parameters_before - report.num_parameters == gates.parameters_per_gate[first]


@pytest.mark.parametrize("name", tiered(STACKED))
def test_rankings_know_experts(name):
    model = EXPERTS[name].build()
    gates, ranking = gating.inject_gates(model, units="neurons", group_size=8), Importance()
    ranking.attach(gates)
    probe = make_probe(model)
    output = model(**probe)
    output[0].square().mean().backward()
    assert all(part.norm().isclose(torch.tensor(1.0)) for part in ranking.scores(gates).split(gates.block_sizes))
    norms = Magnitude().scores(gates) * gates.parameters_per_gate.float()
    for block, of_block in zip(gates.blocks(), norms.split(gates.block_sizes), strict=True):
        if isinstance(block, ExpertsBlock):
            weights = [block.module._parameters[name] for name in (*dict(block.spec.ups), block.spec.down)]
            total = sum(float(weight.detach().abs().sum()) for weight in weights)
            assert float(of_block.sum()) == pytest.approx(total, rel=1e-4)


def test_importance_is_the_derivative_with_respect_to_each_gate():
    # One token in one expert: sums and absolute values can be exchanged.
    family = replace(EXPERTS["mixtral"], arguments={**EXPERTS["mixtral"].arguments, "num_experts_per_tok": 1})
    model = family.build()
    gates, ranking = gating.inject_gates(model, units="neurons", group_size=8), Importance()
    ranking.attach(gates)
    values = gates.values().detach().requires_grad_()
    # Passes with given values, as of a proof, count nothing.
    model(input_ids=torch.tensor([[5]])).logits.square().mean().backward()
    with gates.fixed_at(values):
        model(input_ids=torch.tensor([[5]])).logits.square().mean().backward()
    assert torch.allclose(ranking.importance, (values * values.grad).abs(), rtol=1e-4, atol=1e-7)
