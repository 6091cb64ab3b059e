"""Saved folders load as the same model, also in unusual families, and never hold NaN."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import gating
from gating.compact.limits import check_finite
from gating.proof.outputs import forward_outputs, max_relative_difference
from gating.proof.probe import make_probe
from tests.support.family_models import GROUPED, Family
from tests.support.fresh_process import answers_of_fresh_process
from tests.support.tiny_models import batch_for, build

FALCON_H1 = {
    **GROUPED,
    "mamba_d_ssm": 32,
    "mamba_n_heads": 4,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
}
# The size of a vocabulary is the one setting of these that looks like a number of layers.
PER_LAYER = {
    **GROUPED,
    "vocab_size_per_layer_input": 262144,
    "hidden_size_per_layer_input": 8,
    "layer_types": ["full_attention"] * 3,
    "num_kv_shared_layers": 0,
}
GEMMA3N = {**PER_LAYER, "activation_sparsity_pattern": None, "laurel_rank": 4, "altup_num_inputs": 2}

# Families with the models, buffers or settings of other families.
ODD = {
    "exaone": Family("LlamaForCausalLM", "ExaoneConfig", GROUPED),
    "internlm3": Family("LlamaForCausalLM", "InternLM3Config", GROUPED),
    "falcon_h1": Family("FalconH1ForCausalLM", "FalconH1Config", FALCON_H1),
    "gemma3n_text": Family("Gemma3nForCausalLM", "Gemma3nTextConfig", GEMMA3N),
    "gemma4_text": Family("Gemma4ForCausalLM", "Gemma4TextConfig", PER_LAYER),
}


@pytest.mark.processes
@pytest.mark.filterwarnings("ignore:.*get no gates")  # of the layers with states
def test_odd_families_load_equal_here_and_elsewhere(tmp_path):
    jobs, expected = {}, {}
    for name, family in ODD.items():
        model = family.build()
        first = gating.find_attention_blocks(model, discover=True)[0]
        gating.prune_heads(model, {first.name: first.head_ids[:2]})
        probe = make_probe(model)
        folder = gating.save_compact(model, tmp_path / name)
        expected[name] = forward_outputs(model, probe)
        loaded = forward_outputs(gating.load_compact(folder), probe)
        assert max_relative_difference(expected[name], loaded) == 0, name
        jobs[name] = {"folder": str(folder), "auto_class": "AutoModelForCausalLM", "batch": probe}
    for name, answer in answers_of_fresh_process(jobs, with_package=False).items():
        assert "error" not in answer, answer["error"]
        torch.testing.assert_close(answer["outputs"][0], expected[name][0], atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:.*get no gates")  # of the layers with states
@pytest.mark.parametrize("name", ["stablelm", *ODD])
def test_a_model_can_be_built_from_its_configuration_in_memory(name):
    family = {**ODD, "stablelm": Family("StableLmForCausalLM", "StableLmConfig", GROUPED)}[name]
    model = family.build()
    first = gating.find_attention_blocks(model, discover=True)[0]
    gating.prune_heads(model, {first.name: first.head_ids[:2]})
    twin = type(model)(model.config)
    twin.load_state_dict(model.state_dict())
    probe = make_probe(model)
    assert max_relative_difference(forward_outputs(model, probe), forward_outputs(twin.eval(), probe)) == 0


@pytest.mark.parametrize("model_class", ["LlamaForSequenceClassification", "LlamaModel"])
def test_other_models_of_a_borrowed_architecture_load_too(model_class, tmp_path):
    model = Family(model_class, "InternLM3Config", GROUPED).build()
    gating.prune_heads(model, {0: [0, 1]})
    probe = make_probe(model)
    loaded = gating.load_compact(gating.save_compact(model, tmp_path / "compact"))
    assert max_relative_difference(forward_outputs(model, probe), forward_outputs(loaded, probe)) == 0


def test_a_model_of_another_family_than_its_configuration_is_not_saved(tmp_path):
    model = Family("MistralForCausalLM", "LlamaConfig", GROUPED).build()
    gating.prune_heads(model, {0: [0, 1]})
    with pytest.raises(ValueError, match="MistralForCausalLM"):
        gating.save_compact(model, tmp_path / "compact")


def test_weights_out_of_range_of_a_smaller_dtype_are_refused(bert, tmp_path):
    bert.classifier.weight.data[0, 0] = 1e5
    gating.prune_heads(bert, {0: [1]})
    folder = gating.save_compact(bert, tmp_path / "compact")
    with pytest.raises(ValueError, match="earlier checkpoint"):
        gating.load_compact(folder, dtype=torch.float16)
    assert gating.load_compact(folder, dtype=torch.bfloat16).classifier.weight[0, 0] > 9e4


def test_a_model_that_the_folder_does_not_hold_is_not_saved(bert, tmp_path):
    gating.prune_heads(bert, {0: [1]})
    # A value that is neither in the configuration nor in the weights.
    bert.bert.embeddings.register_forward_hook(lambda *_: _[2] + 1)
    with pytest.raises(ValueError, match="other outputs"):
        gating.save_compact(bert, tmp_path / "compact")
    assert not (tmp_path / "compact").exists()
    gating.save_compact(bert, tmp_path / "compact", verify=False)


def test_tables_that_a_folder_does_not_have_may_be_without_values():
    part = torch.nn.Module()
    part.register_buffer("table", torch.full((2,), float("nan")), persistent=False)
    check_finite(part, "part")
    part.register_buffer("table", torch.full((2,), float("nan")))
    with pytest.raises(ValueError, match="part: table has values that are NaN"):
        check_finite(part, "part")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["classifier.bias", "bert.encoder.layer.1.attention.self.query.weight"])
def test_weights_that_are_nan_or_infinite_are_neither_saved_nor_loaded(value, name, bert, tmp_path):
    gating.prune_heads(bert, {0: [1]})
    folder = gating.save_compact(bert, tmp_path / "compact")
    with torch.no_grad():
        bert.get_parameter(name).view(-1)[3 % bert.get_parameter(name).numel()] = value
    with pytest.raises(ValueError, match=f"{name} has values that are NaN or infinite"):
        gating.save_compact(bert, tmp_path / "other")
    assert not (tmp_path / "other").exists()
    weights = load_file(folder / "model.safetensors")
    weights[name].view(-1)[0] = value
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    del config["head_gating"]["sha256"]
    (folder / "config.json").write_text(json.dumps(config))
    with (
        pytest.warns(UserWarning, match="has no checksums"),
        pytest.raises(ValueError, match=f"{name} has values that are NaN or infinite"),
    ):
        gating.load_compact(folder)
    gating.load_compact(folder, verify=False)


def test_a_pruned_submodule_can_be_saved_and_loaded(tmp_path):
    class Sentences(torch.nn.Sequential):
        """A container such as SentenceTransformer."""

    inner = build("distilbert")
    outer = Sentences(inner, torch.nn.Identity())
    name = gating.find_attention_blocks(outer)[0].name
    gating.prune_heads(outer, {name: [0]})
    inner.save_pretrained(tmp_path / "inner")
    loaded = gating.load_compact(tmp_path / "inner")
    batch = batch_for(inner)
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, inner(**batch).logits)
    with pytest.raises(ValueError, match=r"them, model.get_submodule\('0'\)"):
        gating.inject_gates(outer)


def test_a_class_that_transformers_does_not_have_is_saved_too(tmp_path):
    class OwnBert(transformers.BertForSequenceClassification):
        """A user's own class."""

    own = OwnBert(build("bert").config).eval()
    gating.prune_heads(own, {0: [1]})
    gating.save_compact(own, tmp_path / "compact")
    assert (tmp_path / "compact" / "config.json").is_file()


def test_a_model_that_its_configuration_does_not_describe_is_not_saved(bert, tmp_path):
    gating.prune_heads(bert, {0: [1]})
    bert.config.intermediate_size = 7
    with pytest.raises(ValueError, match="configuration"):
        gating.save_compact(bert, tmp_path / "compact")
    assert not any(tmp_path.iterdir())


def test_a_canary_is_of_the_model_as_it_loads(tmp_path):
    # In half precision, eager attention rounds otherwise than the one that loading chooses.
    torch.manual_seed(0)
    sizes = {**GROUPED, "num_hidden_layers": 6, "initializer_range": 0.1}
    config = transformers.LlamaConfig(**sizes, attn_implementation="eager")
    model = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
    gating.prune_heads(model, {0: [0, 1]})
    assert gating.load_compact(gating.save_compact(model, tmp_path / "compact", stock=False)).check_canary() < 1e-5


def test_a_canary_tells_a_model_that_computes_something_else(folder, tmp_path):
    model = gating.load_compact(folder)
    assert model.check_canary() < 1e-5
    with torch.no_grad():
        model.bert.pooler.dense.weight *= 1.5
    with pytest.raises(ValueError, match="other outputs"):
        model.check_canary()
    model.save_pretrained(tmp_path / "again")
    with pytest.raises(ValueError, match="BertForSequenceClassification"):
        gating.load_compact(tmp_path / "again").check_canary()
