"""Folders for vLLM: as its source reads them, since it is too large to be installed for tests."""

import inspect
import json
import logging

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging as hf_logging

import gating
from gating.loader.saving import compact_class
from gating.proof.outputs import forward_outputs, max_relative_difference
from gating.serving.vllm import check_vllm, export_vllm, serve_stock
from tests.serving.decoders import needs_layers
from tests.support.family_models import FAMILIES, GROUPED, Family
from tests.support.fresh_process import answers_of_fresh_process, outputs_of

TOKENS = torch.tensor([[5, 6, 7, 8, 9], [0, 0, 11, 12, 13]])
BATCH = {"input_ids": TOKENS, "attention_mask": (TOKENS != 0).long()}
FLAG = "allow_global_per_layer_attribute_access"


def qwen2():
    """Return a model whose configuration has no width of a head."""
    sizes = {name: value for name, value in GROUPED.items() if name != "head_dim"}
    return Family("Qwen2ForCausalLM", "Qwen2Config", {**sizes, "hidden_size": 64}).build()


MODELS = {"llama": FAMILIES["llama"].build, "qwen2": qwen2, "gpt_neox": FAMILIES["gpt_neox"].build}


def uneven(name):
    """Return a decoder with other heads and neurons in each layer, and none in the last."""
    model = MODELS[name]()
    first, second, third = (block.head_ids for block in gating.find_attention_blocks(model))
    gating.prune_heads(model, {0: first[:2], 1: second[:1], 2: third})
    gating.prune_neurons(model, {0: [1], 1: [0, 2]}, group_size=16)
    return model.eval()


@pytest.fixture(scope="module")
def exported(tmp_path_factory, tokenizer):
    """By name: the model, and the report of its export."""
    needs_layers()
    place, made = tmp_path_factory.mktemp("vllm"), {}
    for name in MODELS:
        model = uneven(name)
        compact = gating.save_compact(model, place / name, tokenizer=tokenizer)
        made[name] = (model, export_vllm(compact, place / f"{name}-vllm"))
    return made


def texts(model):
    return [
        model.generate(**BATCH, max_new_tokens=6, min_new_tokens=6, do_sample=False, **options).tolist()
        for options in ({}, {"cache_implementation": "static"})
    ]


@pytest.mark.parametrize("name", MODELS)
def test_the_configuration_of_a_layer_has_its_sizes(name, exported):
    """The values that vLLM's ModelArchConfigConvertorBase reads, layer by layer."""
    _, report = exported[name]
    config = AutoConfig.from_pretrained(report.path)
    blocks = gating.find_attention_blocks(gating.load_compact(report.path))
    assert config.is_heterogeneous
    for layer, block in zip(config.per_layer_config, blocks, strict=True):
        heads = layer.num_attention_heads
        assert heads == len(block.head_slots) > 0
        assert getattr(layer, "num_key_value_heads", heads) == block.num_key_value_heads
        assert getattr(layer, "head_dim", None) == block.head_dim


@pytest.mark.parametrize("name", MODELS)
def test_it_loads_generates_and_is_saved_again_as_any_compact_folder(name, exported, tmp_path):
    model, report = exported[name]
    loaded = gating.load_compact(report.path)
    assert not loaded.config.is_heterogeneous
    assert not hasattr(loaded.config, FLAG) or not getattr(loaded.config, FLAG)
    assert texts(loaded) == texts(model)
    gating.prune_heads(loaded, {0: [gating.find_attention_blocks(loaded)[0].head_ids[0]]})
    again = gating.save_compact(loaded, tmp_path / "again")
    assert "per_layer_config" not in json.loads((again / "config.json").read_text())


def test_plain_transformers_loads_and_saves_it(exported, tmp_path):
    jobs = {
        name: {
            "folder": str(report.path),
            "auto_class": "AutoModelForCausalLM",
            "batch": BATCH,
            "save_again": str(tmp_path / name),
        }
        for name, (_, report) in exported.items()
    }
    answers = answers_of_fresh_process(jobs, with_package=False)
    for name, (model, _) in exported.items():
        for actual in outputs_of(answers[name]):
            torch.testing.assert_close(actual, forward_outputs(model, BATCH)[0], rtol=1e-5, atol=1e-5)
        assert "per_layer_config" not in json.loads((tmp_path / name / "config.json").read_text())


def test_a_model_is_built_twice_from_one_configuration_as_vllm_does(exported):
    config = AutoConfig.from_pretrained(exported["llama"][1].path)
    for _ in range(2):
        with torch.device("meta"):
            built = transformers.AutoModel.from_config(config, trust_remote_code=True)
        assert built.layers[0].self_attn.q_proj.weight.shape == (48, 64)
    assert config.is_heterogeneous


def test_nothing_is_printed_when_it_is_loaded(exported, caplog):
    hf_logging.enable_propagation()
    transformers.utils.logging.warning_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        model = gating.load_compact(exported["llama"][1].path)
        texts(model)
    hf_logging.disable_propagation()
    assert "per-layer" not in caplog.text


def test_the_report_has_the_command_and_the_tokenizer_is_copied(exported):
    _, report = exported["llama"]
    assert f"Run it: vllm serve {report.path} --model-impl transformers --trust-remote-code" in report.sentences
    assert "Layers without heads, 1 of 3, have one that does nothing." in report.sentences
    assert (report.path / "tokenizer.json").is_file()
    assert report.megabytes > 0


def test_even_layers_are_a_dense_model(tmp_path):
    model = FAMILIES["llama"].build()
    gating.prune_heads(model, {layer: range(4) for layer in range(3)})
    report = export_vllm(model, tmp_path / "stock")
    assert f"Run it: vllm serve {report.path}" in report.sentences
    widths = {"qwen2": f"vllm serve {tmp_path} --model-impl transformers", "qwen3": f"vllm serve {tmp_path}"}
    for name, command in widths.items():
        other = FAMILIES[name].build()
        gating.prune_heads(other, {layer: range(4) for layer in range(3)})
        assert serve_stock(other, tmp_path) == command
    assert "There is no tokenizer in the folder: save yours there, or add --tokenizer NAME." in report.sentences
    loaded = AutoModelForCausalLM.from_pretrained(report.path)
    assert loaded.config.num_key_value_heads == 2
    assert max_relative_difference(forward_outputs(model, BATCH), forward_outputs(loaded, BATCH)) < 1e-6


def bert():
    return FAMILIES["bert"].build()


def alibi():
    return FAMILIES["falcon-rw-alibi"].build()


def latent():
    return FAMILIES["deepseek_v3"].build()


def gpt2():
    needs_layers()
    return FAMILIES["gpt2"].build()


def narrow_experts():
    model = FAMILIES["mixtral"].build()
    gating.prune_neurons(model, {0: [0]}, group_size=16)
    return model


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (narrow_experts, r"layers\.0\..* has experts with fewer neurons than the configuration"),
        (gpt2, r"vLLM leaves out transformer\.h\.0\.attn\.c_attn\.bias, as its class ignores"),
        (bert, "BertForSequenceClassification is not a decoder that writes text"),
        (alibi, "other heads in each layer: its class does not let a runtime"),
        (latent, "caches a latent, for which vLLM has one size"),
    ],
)
def test_other_models_are_refused_before_anything_is_written(build, message, tmp_path):
    model = build()
    gating.prune_heads(model, {gating.find_attention_blocks(model)[0].name: [0]})
    for refuse in (check_vllm, lambda model: export_vllm(model, tmp_path / "new")):
        with pytest.raises(ValueError, match=message):
            refuse(model)
    assert not list(tmp_path.iterdir())


def test_what_is_in_the_place_is_renamed(exported, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        export_vllm(exported["llama"][1].path, tmp_path / "mine")
    for number in (1, 2):
        export_vllm(exported["llama"][1].path, tmp_path / "mine", overwrite=True)
        assert (tmp_path / f"mine.{number}").is_dir()
    assert (tmp_path / "mine.1" / "notes.txt").read_text() == "mine"


def test_types_of_the_constructor_fit_any_argument():
    """vLLM compares the configuration with the type of the first parameter, which is ``self``."""
    cls = compact_class(transformers.LlamaModel)
    types = [parameter.annotation for parameter in inspect.signature(cls.__init__).parameters.values()]
    assert types[0] is inspect.Parameter.empty
    assert set(types[1:]) == {object}
