"""Decoders in ONNX Runtime GenAI write the tokens that they write in transformers."""

import json
import logging
import re
import sys
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import gating
from gating.serving.genai import check as genai_check
from gating.serving.genai.genai_export import check_genai, export_genai
from tests.serving.decoders import make_tokenizer
from tests.support.family_models import randomize
from tests.support.tiers import first_of

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

SIZES: dict[str, Any] = {
    "vocab_size": 211,
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 16,
    "intermediate_size": 80,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
ALTERNATING = ["sliding_attention", "full_attention"] * 2
WINDOWS = ["sliding_attention"] * 4
ODD = {"hidden_size": 96, "head_dim": 24, "vocab_size": 203}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 6}
# Name of the family's classes, and settings beside the sizes.
DECODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {"head_dim": 8, "tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    "mistral": ("Mistral", {"sliding_window": 6}),
    "qwen2": ("Qwen2", {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 2}),
    "qwen3": ("Qwen3", ODD),
    "phi3": ("Phi3", {"original_max_position_embeddings": 128}),
}
MORE_DECODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-linear": ("Llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}}),
    "llama-llama3": (
        "Llama",
        {"head_dim": 20, "rope_parameters": LLAMA3 | {"original_max_position_embeddings": 32, "rope_theta": 1e4}},
    ),
    "llama-80": ("Llama", {"head_dim": 80, "hidden_size": 96}),
    "gemma": ("Gemma", ODD),
    "gemma2": ("Gemma2", ODD | {"sliding_window": 6}),
    "gemma3": ("Gemma3", ODD | {"sliding_window": 6, "layer_types": ALTERNATING}),
    "gemma3-windows": ("Gemma3", ODD | {"sliding_window": 6, "layer_types": WINDOWS}),
    "granite": ("Granite", {"embedding_multiplier": 2.0, "residual_multiplier": 0.5, "logits_scaling": 3.0}),
    "smollm3": ("SmolLM3", {"no_rope_layers": [1, 0, 1, 0]}),
    "ernie": ("Ernie4_5", {"use_bias": True}),
    "nemotron": ("Nemotron", {}),
    "phi3-partial": ("Phi3", {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.75}}),
    "gpt-oss": ("GptOss", EXPERTS),
}
# One layer with filled groups, one without heads, one with whole groups less, one with a single head less.
HEADS = {0: [0, 1, 2], 1: range(8), 2: [2, 3, 6, 7], 3: [7]}


def build(name, **settings):
    """Return a decoder of which some heads and neurons are pruned."""
    family, own = (DECODERS | MORE_DECODERS)[name]
    config = getattr(transformers, f"{family}{'Text' * (family == 'Gemma3')}Config")(**SIZES | own | settings)
    model = randomize(getattr(transformers, f"{family}ForCausalLM")(config).eval(), std=0.15, seed=0)
    gating.prune_heads(model, {layer: list(heads) for layer, heads in HEADS.items()})
    gating.prune_neurons(model, {0: [0, 1, 2], 2: range(9 if name == "gpt-oss" else 10)}, group_size=8)
    return model


def write(folder, prompt, count=24):
    """Return the tokens that the runtime writes after a prompt."""
    genai = pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai is not installed")
    model = genai.Model(str(folder))
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(max_length=len(prompt) + count, do_sample=False)
    generator = genai.Generator(model, parameters)
    generator.append_tokens(np.array([prompt], dtype=np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    return list(generator.get_sequence(0))


def check_decoder(name, folder):
    pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai is not installed")
    model = build(name)
    names = list(model.state_dict())
    report = export_genai(model, folder)
    prompt = [5, 9, 30, 11, 77, 102, 9]
    expected = model.generate(torch.tensor([prompt]), max_new_tokens=24, do_sample=False)[0].tolist()
    # The runtime leaves out the token that ends a text.
    assert write(folder, prompt) == expected[: -1 if expected[-1] == 2 else None]
    assert re.search(r"all \d+ greedy tokens are the model's own", report.sentences[1])
    assert re.search(r"padded on the right: all \d+ greedy tokens", report.sentences[2])
    assert list(model.state_dict()) == names


@pytest.mark.parametrize("name", first_of(DECODERS))
def test_the_runtime_writes_the_tokens_of_the_model(name, tmp_path):
    check_decoder(name, tmp_path / "exported")


@pytest.mark.slow
@pytest.mark.parametrize("name", MORE_DECODERS)
def test_the_runtime_writes_the_tokens_of_more_models(name, tmp_path):
    check_decoder(name, tmp_path / "exported")


@pytest.fixture
def small():
    pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai is not installed")
    return build("llama")


def test_a_compact_folder_is_exported_with_its_tokenizer(small, tmp_path, capfd):
    genai = pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai is not installed")
    model = build("llama", vocab_size=263)
    gating.save_compact(model, tmp_path / "compact", tokenizer=make_tokenizer())
    capfd.readouterr()
    handlers, path = list(logging.getLogger().handlers), list(sys.path)
    report = export_genai(tmp_path / "compact", tmp_path / "exported")
    assert (logging.getLogger().handlers, sys.path) == (handlers, path)
    assert capfd.readouterr().out == ""
    assert report.sentences[3] == (
        "The runtime leaves out the special tokens that the tokenizer adds: write <s> in the prompt"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["compact", "exported"]
    assert sorted(path.name for path in (tmp_path / "exported").iterdir()) == [
        *("genai_config.json", "generation_config.json", "head_gating.json", "model.onnx", "model.onnx.data"),
        *("tokenizer.json", "tokenizer_config.json"),
    ]
    tokenizer = genai.Tokenizer(genai.Model(str(tmp_path / "exported")))
    assert tokenizer.encode("<s>hello").tolist() == make_tokenizer()("hello")["input_ids"]
    # Again in its place: what is there is renamed.
    export_genai(tmp_path / "compact", tmp_path / "exported", overwrite=True)
    (tmp_path / "exported" / "notes.txt").touch()
    export_genai(tmp_path / "compact", tmp_path / "exported", overwrite=True)
    assert (tmp_path / "exported.2" / "notes.txt").exists()


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_the_change_by_quantized_weights_is_measured(small, tmp_path, dtype):
    report = export_genai(small, tmp_path / "exported", dtype=dtype)
    assert f"weights in {dtype}" in report.sentences[0]
    assert "its logits differ by up to" in report.sentences[1]


def test_models_in_bfloat16_are_exported_in_float32(small, tmp_path):
    model = small.to(torch.bfloat16)
    assert "GenAI: all" in export_genai(model, tmp_path / "exported").sentences[1]
    assert model.dtype == torch.bfloat16


def test_special_tokens_are_written(small, tmp_path):
    small.generation_config.eos_token_id = [2, 7, 1000]
    export_genai(small, tmp_path / "exported")
    written = json.loads((tmp_path / "exported" / "genai_config.json").read_text())["model"]
    assert (written["bos_token_id"], written["eos_token_id"], written["pad_token_id"]) == (1, [2, 7], 0)
    small.generation_config.eos_token_id = small.config.eos_token_id = None
    report = export_genai(small, tmp_path / "other")
    assert report.sentences[-1] == "No token is known that ends a text: the runtime ends it at token 0"


def test_an_export_that_writes_other_tokens_is_refused(small, tmp_path, monkeypatch):
    own = genai_check._write

    def write_others(*args):
        tokens, logits = own(*args)
        return [[(token + 1) % 200 for token in row] for row in tokens], logits

    monkeypatch.setattr(genai_check, "_write", write_others)
    with pytest.raises(RuntimeError, match="writes other tokens than the model"):
        export_genai(small, tmp_path / "exported")
    assert list(tmp_path.iterdir()) == []


def test_an_export_with_other_logits_is_refused(small, tmp_path, monkeypatch):
    monkeypatch.setattr(genai_check, "_change_of_logits", lambda *_: 0.01)
    with pytest.raises(RuntimeError, match="differ from the model's by 1 % of the largest"):
        export_genai(small, tmp_path / "exported")
    assert list(tmp_path.iterdir()) == []


def test_errors_of_the_builder_are_one_sentence(small, tmp_path, monkeypatch):
    monkeypatch.setattr("gating.serving.genai.genai_export.build_graph", lambda *args, **kwargs: {}["missing"])
    with pytest.raises(RuntimeError, match=r"LlamaForCausalLM cannot be exported .*KeyError.*Nothing was written"):
        export_genai(small, tmp_path / "exported")
    assert list(tmp_path.iterdir()) == []


def test_models_that_the_runtime_cannot_run_are_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime_genai", None)
    check_genai(build("llama"))
    without_neurons = build("gpt-oss")
    gating.prune_neurons(without_neurons, {2: [9]}, group_size=8)
    dynamic = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    refused = {
        "rope_type='dynamic'": build("llama", rope_parameters=dynamic),
        "hidden_act='tanh'": build("llama", hidden_act="tanh"),
        "GPTNeoXForCausalLM is not supported": transformers.GPTNeoXForCausalLM(
            transformers.GPTNeoXConfig(vocab_size=40, hidden_size=16, num_attention_heads=2, num_hidden_layers=1)
        ),
        "GptOssForCausalLM has a layer without neurons": without_neurons,
        "BertForMaskedLM is not a decoder": transformers.BertForMaskedLM(
            transformers.BertConfig(vocab_size=40, hidden_size=16, num_attention_heads=2, num_hidden_layers=1)
        ),
    }
    for reason, model in refused.items():
        with pytest.raises(ValueError, match=reason):
            check_genai(model)


def test_bad_arguments_are_errors(tmp_path, monkeypatch):
    model = build("llama")
    with pytest.raises(
        ValueError, match="dtype='f16' is not a type of ONNX Runtime GenAI's weights: give one of f32, int8, int4"
    ):
        export_genai(model, tmp_path / "exported", dtype="f16")
    monkeypatch.setitem(sys.modules, "onnxruntime_genai", None)
    with pytest.raises(ImportError, match=r"onnxruntime-genai is needed.*pip install 'head-gating\[serving\]'"):
        export_genai(model, tmp_path / "exported")
    assert list(tmp_path.iterdir()) == []
