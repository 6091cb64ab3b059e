"""Gates and PEFT's adapters on one model: both trained, adapters merged, heads or neurons removed."""

import json

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file

import gating
from gating.models.adapters import LoRA
from gating.objectives import HeadBudget
from gating.proof.outputs import forward_outputs, max_relative_difference
from gating.proof.probe import make_probe
from gating.pruning.finalize import decide_gate_values
from tests.run.test_train import run_here, setting
from tests.support.family_models import FAMILIES
from tests.support.gated import num_kept
from tests.support.tiny_models import batch_for, build
from tests.support.tiny_run import make_inputs

# Of the rows and columns that adapters change: GPT-2 makes queries, keys and values at once, in a transposed layer.
TARGETS = {
    "bert": ["query", "value"],
    "gpt2": ["c_attn"],
    "llama": ["q_proj", "v_proj"],
    "t5": ["q", "v"],
    "bart": ["q_proj", "v_proj", "out_proj", "fc1"],
}


def train_together(model, steps=4):
    """Train adapters and gates for a few steps."""
    gates, objective = gating.inject_gates(model), gating.ExactBudget(keep=0.5)
    objective.attach(gates)
    batch = make_probe(model)
    learned = [p for p in model.parameters() if p.requires_grad and p is not gates.log_alpha]
    optimizer = torch.optim.AdamW([{"params": learned, "lr": 0.01}, {"params": [gates.log_alpha], "lr": 0.3}])
    for step in range(steps):
        torch.manual_seed(step)
        objective.update(gates, step / steps)
        model.train()(**batch).logits.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    objective.update(gates, 1.0)
    model.eval()
    return gates, objective, batch


@pytest.mark.parametrize("family", TARGETS)
@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False")
def test_masked_unmerged_merged_and_compact_outputs_are_equal(family, tmp_path):
    model = FAMILIES[family].build()
    config = peft.LoraConfig(target_modules=TARGETS[family], r=4, init_lora_weights=False)
    wrapped = peft.get_peft_model(model, config)
    gates, objective, batch = train_together(wrapped.get_base_model())
    kept = objective.kept(gates)
    with gates.fixed_at(decide_gate_values(gates, kept=kept)):
        unmerged = forward_outputs(model, batch)
    assert wrapped.merge_and_unload() is model
    report = gating.finalize(model, gates, kept=kept, probe=batch)
    assert (
        report.num_heads
        == num_kept(gates, objective)
        == HeadBudget(keep=0.5).parts(gates)[0].limit
        < report.num_heads_before
    )
    # Merging changes the order of summation.
    assert max_relative_difference(unmerged, forward_outputs(model, batch)) < 1e-4
    loaded = gating.load_compact(gating.save_compact(model, tmp_path / "compact"))
    for one, other in zip(forward_outputs(model, batch), forward_outputs(loaded.eval(), batch), strict=True):
        assert torch.equal(one, other)


def test_adapters_and_gates_learn_and_other_weights_stay():
    model = build("bert")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    wrapped = peft.get_peft_model(model, peft.LoraConfig(target_modules=["query", "value"]))
    gates, _, _ = train_together(wrapped.get_base_model())
    assert (gates.log_alpha - gates.log_alpha[0]).abs().max() > 0.1
    after = {name.replace(".base_layer", ""): tensor for name, tensor in model.state_dict().items()}
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert any(p.abs().max() > 0 for name, p in model.named_parameters() if "lora_B" in name)


def test_gates_of_adapted_output_projections_are_not_lost_in_merging():
    """PEFT replaces its wrapper by the original layer, which loses hooks on the wrapper."""
    model = build("bert")
    batch = batch_for(model)
    wrapped = peft.get_peft_model(model, peft.LoraConfig(target_modules=["output.dense"]))
    gates = gating.inject_gates(model)
    with gates.fixed_at(torch.zeros(12)):
        closed = forward_outputs(model, batch)
    wrapped.merge_and_unload()
    gates.attach_again()
    with gates.fixed_at(torch.zeros(12)):
        assert max_relative_difference(closed, forward_outputs(model, batch)) < 1e-6


def test_removal_before_merging_is_refused_with_the_remedy(tmp_path):
    model = build("bert")
    wrapped = peft.get_peft_model(model, peft.LoraConfig(target_modules=["query"], modules_to_save=["classifier"]))
    for refused in (gating.inject_gates, lambda m: gating.prune_heads(m, {0: [1]})):
        with pytest.raises(ValueError, match=r"merge_and_unload\(\)"):
            refused(wrapped)
    remedy = r"encoder\.layer\.0\.attention\.self\.query has an adapter .*merge_and_unload\(\)"
    before = model.bert.encoder.layer[0].attention.self.key.weight
    with pytest.raises(ValueError, match=remedy):
        gating.prune_heads(model, {0: [1]})
    with pytest.raises(ValueError, match=remedy):
        gating.save_compact(model, tmp_path / "compact")
    gates = gating.inject_gates(model)
    with pytest.raises(ValueError, match=remedy):
        gating.finalize(model, gates, num_heads=6)
    assert model.head_gates is gates
    assert model.bert.encoder.layer[0].attention.self.key.weight is before
    gates.remove()
    merged = wrapped.merge_and_unload()
    assert gating.prune_heads(merged, {0: [1]}).num_heads == 11


def test_structure_is_discovered_below_adapters():
    model = build("bert")
    wrapped = peft.get_peft_model(model, peft.LoraConfig(target_modules=["query"]))
    assert gating.inject_gates(wrapped.get_base_model(), discover=True).num_heads == 12


@pytest.mark.parametrize(
    ("family", "adapted", "head"),
    [
        ("bert", {"query", "value"}, {"classifier"}),
        ("llama", {"q_proj", "v_proj"}, set()),
        ("gpt2", {"c_attn"}, set()),
        ("distilbert", {"q_lin", "v_lin"}, {"pre_classifier", "classifier"}),
        ("vit", {"q_proj", "v_proj"}, {"classifier"}),
    ],
)
def test_queries_values_and_the_head_of_the_task_are_trained(family, adapted, head):
    model = FAMILIES[family].build()
    with LoRA().on(model):
        learned = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        names = {name.split(".lora_")[0].rpartition(".")[2] for name in learned if "lora_" in name}
        # Before transformers 5.18, layers of ViT have the names of BERT's.
        assert names == adapted or (family == "vit" and names == {"query", "value"})
        assert {name.split(".")[0] for name in learned if "lora_" not in name} == head
    assert not [name for name in model.state_dict() if "lora" in name]
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_adapters_are_merged_at_the_end_of_the_context():
    model = build("bert")
    batch = batch_for(model)
    with LoRA(target_modules=["query", "attention.output.dense"]).on(model):
        gates = gating.inject_gates(model)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.1)
        adapted = forward_outputs(model, batch)
    assert max_relative_difference(adapted, forward_outputs(model, batch)) < 1e-5
    with gates.fixed_at(torch.zeros(12)):
        assert max_relative_difference(adapted, forward_outputs(model, batch)) > 1e-2


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return make_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.mark.runs
def test_a_run_trains_adapters_in_search_and_recovery_and_no_other_weights(inputs, tmp_path):
    numbers = run_here([*inputs, "adapters=lora", "optimizer.lr=0.01"], tmp_path / "out")
    assert numbers["num_heads"] == 4
    assert numbers["removed/val/accuracy"] == numbers["search/val/accuracy"]
    old = load_file(f"{setting(inputs, 'model.name')}/model.safetensors")
    new = load_file(tmp_path / "out" / "compact" / "model.safetensors")
    assert not [name for name in new if "lora" in name or "base_layer" in name]
    assert torch.equal(new["bert.embeddings.word_embeddings.weight"], old["bert.embeddings.word_embeddings.weight"])
    assert not torch.equal(new["classifier.weight"], old["classifier.weight"])
    record = json.loads((tmp_path / "out" / "compact" / "config.json").read_text())["head_gating"]["units"]
    for name, notes in record.items():
        rows = [row for head in notes["head_ids"] for row in range(8 * head, 8 * head + 8)]
        if rows:
            assert torch.equal(new[f"bert.{name}.key.weight"], old[f"bert.{name}.key.weight"][rows])
            assert not torch.equal(new[f"bert.{name}.query.weight"], old[f"bert.{name}.query.weight"][rows])


def test_adapters_exclude_blocks_without_heads():
    model = FAMILIES["bart"].build()
    gating.prune_heads(model, {"encoder.layers.0.self_attn": range(4)})
    with LoRA(rank=2, target_modules=["out_proj", "fc1"]).on(model):
        adapted = {name for name, module in model.named_modules() if hasattr(module, "lora_A")}
    assert "model.encoder.layers.0.self_attn.out_proj" not in adapted
    assert "model.encoder.layers.1.self_attn.out_proj" in adapted


def test_adapters_do_not_train_padding_heads():
    model = FAMILIES["llama"].build()
    gating.prune_heads(model, {0: [0, 2, 3], 1: [5]})
    batch = make_probe(model)
    with LoRA(rank=4, target_modules=["o_proj"]).on(model):
        learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.SGD(learned, lr=1.0)
        for _ in range(3):
            model(**batch).logits.square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        trained = forward_outputs(model, batch)
    assert max_relative_difference(trained, forward_outputs(model, batch)) < 1e-5


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
