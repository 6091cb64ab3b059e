"""Lengths beyond which models compute otherwise: checks of exports go past them, or the context ends there."""

import pytest
import torch
from transformers import (
    DogeConfig,
    DogeForCausalLM,
    LlamaConfig,
    MistralConfig,
    ModernBertConfig,
    ModernBertForMaskedLM,
    Qwen2Config,
)

import gating
from gating.serving import greedy
from gating.serving.contexts import boundaries, checked_context, steady_context
from gating.serving.copies import as_converted
from gating.serving.graphs.check import batches_to_check
from gating.serving.greedy import make_prompts
from tests.serving.decoders import make_decoder, write_greedily
from tests.support.tiers import first_of
from tests.support.versions import class_of_transformers

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "factor": 4.0,
    "short_factor": [1.0] * 12,
    "long_factor": [3.0] * 12,
    "original_max_position_embeddings": 32,
}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def test_windows_and_first_contexts_are_boundaries():
    assert boundaries(MistralConfig(sliding_window=24)) == [24]
    assert boundaries(LlamaConfig()) == []
    rope = {**LLAMA3, "original_max_position_embeddings": 48}
    assert boundaries(LlamaConfig(rope_parameters=rope, max_position_embeddings=192)) == [48]
    assert boundaries(Qwen2Config(sliding_window=16, use_sliding_window=False)) == []
    assert boundaries(Qwen2Config(sliding_window=16, use_sliding_window=True, max_window_layers=2)) == [16]


def test_the_number_of_tokens_that_an_index_picks_is_a_boundary():
    assert boundaries(class_of_transformers("DeepseekV32Config")(index_topk=99)) == [99]


def test_only_changing_frequencies_and_lengths_beyond_checks_shorten_the_context():
    assert checked_context(MistralConfig(sliding_window=24, max_position_embeddings=99)) == (99, None)
    dynamic = LlamaConfig(rope_parameters=DYNAMIC, max_position_embeddings=64)
    assert steady_context(dynamic) == 64
    context, sentence = checked_context(dynamic)
    assert context == 64
    assert sentence.startswith("The context is 64 tokens: beyond them, the model's rotary embeddings change")
    assert checked_context(MistralConfig(sliding_window=9000, max_position_embeddings=32768))[0] == 9000


@pytest.mark.parametrize("window", [8, 40, 100, 127, 128])
def test_prompts_go_past_a_window_before_and_while_writing(window):
    prompts, count = make_prompts(make_decoder("Mistral", steps=0, sliding_window=window))
    lengths = list(map(len, prompts))
    assert max(lengths) + count <= 128
    assert any(length + count >= window for length in lengths)
    if window <= 80:
        assert any(length > window for length in lengths)
        assert any(length < window <= length + count for length in lengths)


@pytest.mark.parametrize("format", first_of(["gguf", "openvino", "onnx"]))
def test_decoders_with_several_ends_of_texts_are_exported(format, tmp_path):
    for package in {"gguf": ["gguf", "xllamacpp"]}.get(format, [format]):
        pytest.importorskip(package, reason=f"{package} is not installed")
    model = make_decoder("Llama", num_hidden_layers=1, eos_token_id=[2, 7], steps=0)
    report = gating.export_compact(
        model, tmp_path / "exported", format=format, **({"dtype": "f32"} if format == "gguf" else {})
    )
    assert "are the model's own" in " ".join(report.sentences)


@pytest.mark.parametrize(
    ("config_class", "model_class", "window"),
    [(ModernBertConfig, ModernBertForMaskedLM, "local_attention"), (DogeConfig, DogeForCausalLM, "keep_window_size")],
)
def test_batches_go_past_a_window(config_class, model_class, window):
    config = config_class(
        **{"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
        **{"intermediate_size": 16, "max_position_embeddings": 1200, window: 1100, "pad_token_id": 0},
    )
    model = model_class(config).eval()
    assert 1107 in {batch["input_ids"].shape[1] for batch, _ in batches_to_check(model, ["input_ids"])}


@pytest.mark.families
@pytest.mark.parametrize("format", first_of(["openvino", "gguf", "onnx"]))
def test_dynamic_embeddings_end_the_context_where_they_change(format, tmp_path):
    pytest.importorskip(format, reason=f"{format} is not installed")
    model = make_decoder("Llama", num_hidden_layers=1, rope_parameters=DYNAMIC, max_position_embeddings=64)
    with torch.no_grad():
        model(input_ids=torch.arange(3, 123)[None])  # A longer text, whose frequencies transformers keeps.
    report = gating.export_compact(model, tmp_path / "exported", format=format)
    assert any(sentence.startswith("The context is 64 tokens: beyond them") for sentence in report.sentences)


def test_copies_for_graphs_have_the_frequencies_of_short_texts():
    model = make_decoder("Llama", num_hidden_layers=1, rope_parameters=DYNAMIC, max_position_embeddings=32)
    short = torch.arange(3, 30)[None]
    expected = model(input_ids=short).logits
    model(input_ids=torch.arange(3, 123)[None])
    assert torch.equal(as_converted(model)(input_ids=short).logits, expected)


def test_a_runtime_that_is_wrong_past_a_window_is_noticed(monkeypatch):
    """A decoder that attends to everything is equal to one with a window, up to its end."""
    model = make_decoder("Mistral", sliding_window=30)
    everything = make_decoder("Mistral", sliding_window=None)
    everything.load_state_dict(model.state_dict())

    def check() -> None:
        prompts, count = make_prompts(model)
        written = [write_greedily(everything, prompt, count) for prompt in prompts]
        greedy.check_tokens(model, prompts, written, tolerance=1e-3, runtime="r")

    with pytest.raises(RuntimeError, match="r writes other tokens than the model"):
        check()
    monkeypatch.setattr(greedy, "boundaries", lambda _: [])
    monkeypatch.setattr(greedy, "NUM_NEW_TOKENS", 8)
    check()


def test_first_contexts_of_steady_embeddings_shorten_nothing():
    rope = {**LLAMA3, "original_max_position_embeddings": 8192}
    config = LlamaConfig(rope_parameters=rope, max_position_embeddings=131072)
    assert boundaries(config) == []
    assert checked_context(config) == (131072, None)


def test_a_window_longer_than_the_context_of_other_checks_is_passed_in_llama_cpp(tmp_path):
    pytest.importorskip("gguf", reason="the package gguf is not installed")
    pytest.importorskip("xllamacpp", reason="the package xllamacpp, llama.cpp, is not installed")
    settings = {"num_hidden_layers": 1, "max_position_embeddings": 4096, "steps": 0}
    model = make_decoder("Llama", rope_parameters={**LLAMA3, "original_max_position_embeddings": 2040}, **settings)
    report = gating.export_compact(model, tmp_path / "model.gguf", format="gguf", dtype="f32")
    assert any("greedy tokens are the model's own" in sentence for sentence in report.sentences)
