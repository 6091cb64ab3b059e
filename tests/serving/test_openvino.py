"""Compact models in OpenVINO give the outputs, and decoders the tokens, that they give in transformers."""

import re
import sys

import numpy as np
import pytest
import torch

import gating
from gating.serving.greedy import make_prompts
from gating.serving.openvino import decoder as openvino_decoder
from gating.serving.openvino.openvino_export import check_openvino, export_openvino
from tests.serving.decoders import make_decoder, make_tokenizer, remove
from tests.support.family_models import FAMILIES

pytestmark = [
    # From tracing in torch and transformers.
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
DECODERS = ["gpt2"]
MORE_DECODERS = [
    "mistral",
    "mixtral",
    "gpt_neox",
    "opt",
    "qwen3",
    "gemma2",
    "gemma3",
    "phi3",
    "phi",
    "falcon-mq",
    "gpt_oss",
    "granite",
]
OTHERS = ["bert"]
MORE_OTHERS = ["distilbert", "modernbert", "deberta-v2", "t5", "vit", "wav2vec2"]


@pytest.fixture
def decoder():
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    model = make_decoder("Llama", num_hidden_layers=3)
    remove(model, {0: [1], 1: [0, 1, 2, 3]}, {0: [0, 1], 2: [0, 1, 2, 3, 4]})
    return model


def write(folder, prompt, count=24):
    """Return the tokens that the saved model writes after a prompt."""
    openvino = pytest.importorskip("openvino", reason="OpenVINO is not installed")
    settings = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
    request = openvino.Core().compile_model(str(folder / "openvino_model.xml"), "CPU", settings).create_infer_request()
    tokens, length = np.array([prompt]), len(prompt)
    for _ in range(count):
        positions = np.arange(length - tokens.shape[1], length)[None]
        given = {"input_ids": tokens, "attention_mask": np.ones((1, length), np.int64), "position_ids": positions}
        logits = request.infer({**given, "beam_idx": np.zeros(1, np.int32)})["logits"]
        tokens, length = logits[:, -1:].argmax(-1), length + 1
        prompt = [*prompt, int(tokens[0, 0])]
    return prompt


@pytest.mark.runs
def test_a_compact_folder_writes_the_tokens_of_the_model(decoder, tmp_path):
    gating.save_compact(decoder, tmp_path / "compact", tokenizer=make_tokenizer())
    report = export_openvino(tmp_path / "compact", tmp_path / "exported")
    assert report.sentences[0] == "3 layers with a cache of 7 key-value groups in all, weights in f32"
    assert "all 200 greedy tokens are the model's own" in report.sentences[1]
    assert "padded on the left: all 200 greedy tokens" in report.sentences[2]
    prompt = [5, 9, 30, 11, 77]
    decoder.generation_config.eos_token_id = None
    generated = decoder.generate(torch.tensor([prompt]), max_new_tokens=24, do_sample=False)
    assert write(tmp_path / "exported", prompt) == generated[0].tolist()
    assert sorted(path.name for path in (tmp_path / "exported").iterdir()) == [
        *("config.json", "generation_config.json", "head_gating.json", "openvino_model.bin", "openvino_model.xml"),
        *("tokenizer.json", "tokenizer_config.json"),
    ]
    assert "auto_map" not in (tmp_path / "exported" / "config.json").read_text()
    (tmp_path / "exported" / "notes.txt").touch()
    export_openvino(tmp_path / "compact", tmp_path / "exported", overwrite=True)
    assert (tmp_path / "exported.1" / "notes.txt").exists()


def check_family(name, folder):
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    model = FAMILIES[name].build()
    if name != "t5":
        blocks = sorted({block.layer_idx: block for block in gating.find_attention_blocks(model)}.items())
        gating.prune_heads(model, {0: [0], 1: list(range(blocks[1][1].num_heads))})
    if FAMILIES[name].has_neurons and name not in ("t5", "mixtral", "gpt_oss"):
        gating.prune_neurons(model, {1: list(range(6))}, group_size=8)
    before = model.config.to_dict()
    report = export_openvino(model, folder)
    assert model.config.to_dict() == before
    return report.sentences


@pytest.mark.families
@pytest.mark.parametrize("name", DECODERS)
def test_decoders_write_the_tokens_of_the_model(name, tmp_path):
    sentences = check_family(name, tmp_path / "exported")
    assert re.search(r"all \d+ greedy tokens are the model's own", sentences[1])


@pytest.mark.slow
@pytest.mark.parametrize("name", MORE_DECODERS)
def test_more_decoders_write_the_tokens_of_the_model(name, tmp_path):
    sentences = check_family(name, tmp_path / "exported")
    assert re.search(r"all \d+ greedy tokens are the model's own", sentences[1])


@pytest.mark.families
@pytest.mark.parametrize("name", OTHERS)
def test_other_models_give_the_same_outputs(name, tmp_path):
    assert "its outputs differ from the model's by" in check_family(name, tmp_path / "exported")[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", MORE_OTHERS)
def test_more_models_give_the_same_outputs(name, tmp_path):
    assert "its outputs differ from the model's by" in check_family(name, tmp_path / "exported")[1]


@pytest.mark.slow
def test_the_change_by_weights_in_16_bits_is_measured(decoder, tmp_path):
    full = export_openvino(decoder, tmp_path / "full").megabytes
    report = export_openvino(decoder, tmp_path / "half", dtype="f16")
    assert report.megabytes < full
    assert "greedy tokens are the model's own" in report.sentences[1]
    sentences = export_openvino(FAMILIES["bert"].build(), tmp_path / "bert", dtype="f16").sentences
    assert "With weights in f16, its outputs differ by" in sentences[-1]


def test_other_tokens_are_errors(decoder, monkeypatch):
    prompts, count = make_prompts(decoder)
    monkeypatch.setattr(openvino_decoder, "_write", lambda *_: [[7] * count for _ in prompts])
    with pytest.raises(RuntimeError, match="OpenVINO writes other tokens than the model"):
        openvino_decoder.check_decoder(None, decoder, dtype="f32", pad_token_id=0)


def test_errors_of_the_converter_are_one_sentence(decoder, tmp_path, monkeypatch):
    monkeypatch.setattr("gating.serving.openvino.openvino_export.convert_decoder", lambda *args: {}["missing"])
    with pytest.raises(RuntimeError, match=r"LlamaForCausalLM cannot be exported .*KeyError.*Nothing was written"):
        export_openvino(decoder, tmp_path / "exported")
    assert list(tmp_path.iterdir()) == []


def test_bad_arguments_are_errors(tmp_path, monkeypatch):
    model = FAMILIES["bert"].build()
    with pytest.raises(ValueError, match=r"dtype='int8' is not a type .*: give one of f32, f16"):
        export_openvino(model, tmp_path / "exported", dtype="int8")
    monkeypatch.setitem(sys.modules, "openvino", None)
    check_openvino(model)
    with pytest.raises(ImportError, match=r"openvino is needed.*pip install 'head-gating\[serving\]'"):
        export_openvino(model, tmp_path / "exported")
    assert list(tmp_path.iterdir()) == []


def test_decoders_with_other_layers_are_refused():
    model = FAMILIES["llama"].build()
    model.config.layer_types = ["full_attention", "chunked_attention", "full_attention"]
    with pytest.raises(ValueError, match=r"layers of the kind 'chunked_attention'"):
        check_openvino(model)
