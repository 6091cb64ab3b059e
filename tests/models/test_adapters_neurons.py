"""PEFT's adapters beside gates on neurons."""

import pytest
import torch
import transformers

import gating
from gating.models.adapters import LoRA
from gating.proof.outputs import forward_outputs, max_relative_difference
from gating.proof.probe import make_probe
from gating.pruning.finalize import decide_gate_values
from tests.support.family_models import FAMILIES

# The layers of feed-forward blocks; GPT-2's are transposed, Phi-3's up projection is fused.
FEED_FORWARD = {
    "bert": ["intermediate.dense", "output.dense"],
    "gpt2": ["c_fc", "c_proj"],
    "phi3": ["gate_up_proj", "down_proj"],
    "t5": ["wi", "wo"],
    "bart": ["fc1", "fc2"],
}


@pytest.mark.parametrize("family", FEED_FORWARD)
@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False")
def test_adapters_of_feed_forward_layers_are_merged_before_neurons_go(family):
    model = FAMILIES[family].build()
    batch = make_probe(model)
    with LoRA(rank=2, target_modules=FEED_FORWARD[family]).on(model):
        gates = gating.inject_gates(model, units=["heads", "neurons"], group_size=7)
        objective = gating.ExactBudget(num_neurons=3 * 14, num_heads=6)
        objective.attach(gates)
        learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(learned, lr=0.05)
        for step in range(3):
            torch.manual_seed(step)
            model.train()(**batch).logits.square().mean().backward()
            # Distributed training needs a gradient for each of them.
            assert all(parameter.grad is not None for parameter in learned)
            optimizer.step()
            optimizer.zero_grad()
        objective.update(gates, 1.0)
        kept = objective.kept(gates)
        with gates.fixed_at(decide_gate_values(gates, kept=kept)):
            unmerged = forward_outputs(model, batch)
    report = gating.finalize(model, gates, kept=kept, probe=batch)
    assert (report.num_heads, report.num_neurons) == (6, 42)
    assert max_relative_difference(unmerged, forward_outputs(model, batch)) < 1e-4


@pytest.mark.parametrize("targets", ["all-linear", ["fc1", "fc2"], ["c_fc", "c_proj"]], ids=str)
@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False")
def test_adapters_exclude_layers_without_neurons(targets):
    model = FAMILIES["gpt2" if "c_fc" in targets else "bart"].build()
    emptied, *others = gating.find_feed_forward_blocks(model, group_size=8)
    gating.prune_neurons(model, {emptied.name: range(6), others[0].name: [0, 2]}, group_size=8)
    batch = make_probe(model)
    expected = forward_outputs(model, batch)
    with LoRA(rank=2, target_modules=targets).on(model):
        adapted = {module for module in model.modules() if hasattr(module, "lora_A")}
        blocks = gating.find_feed_forward_blocks(model)
        assert blocks[0].output_projection not in adapted
        assert all(block.output_projection in adapted for block in blocks[1:])
        model.train()(**batch).logits.square().mean().backward()
        assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)
    assert max_relative_difference(expected, forward_outputs(model, batch)) < 1e-6


def test_queries_and_values_of_unknown_attention_are_to_be_named(forget):
    forget("BloomAttention")
    sizes = {"vocab_size": 60, "hidden_size": 32, "n_layer": 2, "n_head": 4}
    model = transformers.BloomForCausalLM(transformers.BloomConfig(**sizes)).eval()
    with pytest.raises(ValueError, match=r"adapters\.target_modules"), LoRA().on(model):
        pass
    gates = gating.inject_gates(model, units="neurons", group_size=16)
    with LoRA(rank=2, target_modules=["query_key_value"]).on(model):
        assert len([name for name, _ in model.named_parameters() if "lora_A" in name]) == 2
    assert gating.finalize(model, gates, num_neurons=64).num_neurons == 64
