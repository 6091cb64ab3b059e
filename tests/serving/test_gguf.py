"""GGUF files: llama.cpp writes the tokens of the model, for every architecture and pattern of removed units."""

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration

import gating
from gating.serving.decoders import sizes_of
from gating.serving.greedy import TokenCheck, check_tokens, make_prompts
from tests.serving.decoders import make_decoder, make_tokenizer, remove, write_greedily
from tests.support.tiers import first_of

gguf = pytest.importorskip("gguf", reason="the package gguf is not installed")
pytest.importorskip("xllamacpp", reason="the package xllamacpp, llama.cpp, is not installed")

from gating.serving.gguf import gguf_export as export  # noqa: E402
from gating.serving.gguf import tokenizer  # noqa: E402
from gating.serving.gguf.architectures import find_architecture  # noqa: E402
from gating.serving.gguf.gguf_export import Answer, run_llama_cpp  # noqa: E402

LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 32}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32}
LINEAR = {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}
# Groups of key-value heads to remove in each layer: different numbers, and one layer that is emptied.
UNEVEN = {0: [1], 1: [0, 1, 2, 3], 2: [0, 2, 3]}
FIRST_EMPTY = {0: [0, 1, 2, 3], 2: [3]}
EVEN = {layer: [0, layer % 3 + 1] for layer in range(4)}
NEURONS = {0: [1], 1: [0, 1, 2, 3, 4], 3: [0, 2, 4]}
EVEN_NEURONS = {layer: [layer % 5] for layer in range(4)}
# Family, settings, groups and neurons to remove, and the architecture.
CASES = {
    "llama": ("Llama", {"tie_word_embeddings": True}, UNEVEN, NEURONS, "deci"),
    "llama-biases": ("Llama", {"attention_bias": True, "mlp_bias": True}, UNEVEN, NEURONS, "deci"),
    "llama-first-empty": ("Llama", {"rope_parameters": LLAMA3}, FIRST_EMPTY, {}, "deci"),
    "llama-even": ("Llama", {"rope_parameters": YARN, "attention_bias": True}, EVEN, EVEN_NEURONS, "llama"),
    "mistral": ("Mistral", {"sliding_window": None, "rope_parameters": LINEAR}, UNEVEN, NEURONS, "deci"),
    "mistral-even": ("Mistral", {"sliding_window": None}, EVEN, {}, "llama"),
    "qwen2": ("Qwen2", {}, UNEVEN, NEURONS, "deci"),
    "qwen2-even": ("Qwen2", {}, EVEN, EVEN_NEURONS, "llama"),
    "qwen3-tied": ("Qwen3", {"tie_word_embeddings": True}, UNEVEN, NEURONS, "openelm"),
    "qwen3-untied": ("Qwen3", {"tie_word_embeddings": False}, FIRST_EMPTY, NEURONS, "step35"),
    "qwen3-even": ("Qwen3", {}, EVEN, EVEN_NEURONS, "qwen3"),
}


def make(name):
    family, settings, groups, neurons, architecture = CASES[name]
    model = make_decoder(family, **settings)
    remove(model, groups, neurons)
    assert find_architecture(model).name == architecture
    return model


@pytest.fixture
def llama():
    return make("llama")


@pytest.mark.parametrize("name", first_of(CASES))
def test_llama_cpp_writes_the_tokens_of_the_model(name, tmp_path):
    model = make(name)
    folder = gating.save_compact(model, tmp_path / "compact", stock=False)
    report = export.export_gguf(folder, tmp_path / "model.gguf", dtype="f32")
    prompts, count = make_prompts(model)
    written = f"Checked in llama.cpp: all {len(prompts) * count} greedy tokens are the model's own"
    assert written in report.sentences
    assert report.path.stat().st_size / 1e6 == report.megabytes


@pytest.mark.parametrize("dtype", first_of(["f16", "bf16", "q8_0"]))
def test_smaller_types_are_checked_too(dtype, llama, tmp_path):
    sizes = [export.export_gguf(llama, tmp_path / f"{kind}.gguf", dtype=kind).megabytes for kind in ("f32", dtype)]
    assert sizes[1] < 0.7 * sizes[0]
    # Its layers have 64, 80 and 32 neurons, and blocks 32 values.
    found = {one.name: one for one in gguf.GGUFReader(tmp_path / f"{dtype}.gguf").tensors}
    widths = [found[f"blk.{layer}.ffn_down.weight"].shape[0] for layer in (0, 2, 3)]
    assert widths == [64, 96, 32]
    assert found["blk.2.ffn_down.weight"].tensor_type.name.lower() == dtype


@pytest.mark.families
def test_models_of_16_bits_have_the_tolerance_of_their_own_rounding(tmp_path):
    model = make_decoder("Llama", hidden_size=192, num_hidden_layers=6, steps=30)
    remove(model, UNEVEN)
    prompts, count = make_prompts(model)
    written = [write_greedily(model, prompt, count) for prompt in prompts]
    rounded = model.to(torch.bfloat16)
    assert check_tokens(rounded, prompts, written, tolerance=1e-6, runtime="r").num_tokens == 200
    assert "Checked" in export.export_gguf(rounded, tmp_path / "model.gguf", dtype="f32").sentences[2]


def test_heads_that_only_fill_groups_and_patterns_of_single_heads(tmp_path):
    model = make_decoder("Llama")
    gating.prune_heads(model, {0: [0], 1: [0, 1, 2], 2: [1, 3, 4, 5, 7]})
    report = export.export_gguf(model, tmp_path / "model.gguf", dtype="f32")
    assert "all 200" in " ".join(report.sentences)
    assert len(set(sizes_of(model).num_heads)) > 1


@pytest.mark.families
@pytest.mark.parametrize("regex", [None, tokenizer._LLAMA3, tokenizer._TEKKEN], ids=["gpt-2", "llama-bpe", "tekken"])
def test_the_tokenizer_of_the_folder_reads_the_same_tokens(regex, llama, tmp_path):
    folder = gating.save_compact(llama, tmp_path / "compact", tokenizer=make_tokenizer(regex=regex))
    report = export.export_gguf(folder, tmp_path / "model.gguf")
    assert "placeholders" not in " ".join(report.sentences)
    fields = gguf.GGUFReader(report.path).fields
    names = {None: "gpt-2", tokenizer._LLAMA3: "llama-bpe", tokenizer._TEKKEN: "tekken"}
    assert fields["tokenizer.ggml.pre"].contents() == names[regex]
    assert fields["tokenizer.ggml.eos_token_id"].contents() == 2
    assert fields["tokenizer.ggml.add_bos_token"].contents() is True


def test_unknown_tokenizers_are_refused_or_taken_from_the_file_of_the_dense_model(llama, tmp_path):
    folder = gating.save_compact(llama, tmp_path / "compact", tokenizer=make_tokenizer(regex=".+"))
    with pytest.raises(ValueError, match=r"has no known name in llama\.cpp\. Pass tokenizer_from"):
        export.export_gguf(folder, tmp_path / "model.gguf")
    with pytest.raises(RuntimeError, match="as other tokens than the tokenizer"):
        export.export_gguf(folder, tmp_path / "model.gguf", pre_tokenizer="gpt-2")
    assert not (tmp_path / "model.gguf").exists()
    known = make_tokenizer()
    dense = export.export_gguf(make_decoder("Llama"), tmp_path / "dense.gguf", tokenizer=known).path
    folder = gating.save_compact(llama, tmp_path / "other", tokenizer=known)
    report = export.export_gguf(folder, tmp_path / "model.gguf", tokenizer_from=dense)
    first, second = (gguf.GGUFReader(path).fields for path in (dense, report.path))
    for key in (key for key in first if key.startswith("tokenizer.")):
        assert first[key].contents() == second[key].contents(), key


def with_template(template, **settings):
    made = make_tokenizer()
    special = [(token, number) for number, token in enumerate(("<pad>", "<s>", "</s>")) if token in template]
    made.backend_tokenizer.post_processor = TemplateProcessing(single=template, special_tokens=special)
    for name, value in settings.items():
        setattr(made, name, value)
    return made


@pytest.mark.parametrize(
    ("template", "settings"),
    first_of([("<s> $A </s>", {}), ("$A", {}), ("<s> $A <pad>", {}), ("$A </s>", {})]),
)
def test_special_tokens_around_texts_are_those_of_the_tokenizer(template, settings, llama, tmp_path):
    made = with_template(template, **settings)
    file = export.export_gguf(llama, tmp_path / "model.gguf", tokenizer=made).path
    answer = run_llama_cpp(file, [], count=1, context=64, texts=["the cat"])
    assert answer.read_with_special == [made("the cat")["input_ids"]]


def test_special_tokens_without_a_place_in_a_file_are_refused(llama, tmp_path):
    dense = export.export_gguf(llama, tmp_path / "dense.gguf", tokenizer=make_tokenizer()).path
    made, path = with_template("<s> <pad> $A"), tmp_path / "model.gguf"
    with pytest.raises(RuntimeError, match=r"as other tokens than the tokenizer"):
        export.export_gguf(llama, path, tokenizer=made)
    assert not path.exists()
    report = export.export_gguf(llama, path, tokenizer=made, tokenizer_from=dense)
    assert "That file adds other special tokens to a text" in " ".join(report.sentences)


def test_tokenizers_of_other_models_are_refused(llama, tmp_path):
    small = make_decoder("Llama", vocab_size=100)
    dense = export.export_gguf(small, tmp_path / "dense.gguf").path
    with pytest.raises(ValueError, match=r"has 100 tokens, but the model's embedding 263"):
        export.export_gguf(llama, tmp_path / "model.gguf", tokenizer_from=dense)
    with pytest.raises(ValueError, match="has the token 262, but the model's embedding 100 rows"):
        export.export_gguf(small, tmp_path / "model.gguf", tokenizer=make_tokenizer())
    with pytest.raises(FileNotFoundError, match=r"nowhere\.gguf"):
        export.export_gguf(llama, tmp_path / "model.gguf", tokenizer_from="nowhere.gguf")
    assert not (tmp_path / "model.gguf").exists()


@pytest.mark.parametrize(
    ("family", "settings", "message"),
    [
        ("Llama", {"hidden_act": "gelu"}, r"its activation 'gelu' is not the SiLU of the architecture deci"),
        ("Qwen3", {"attention_bias": True}, r"has no biases, and the model has model\.layers\.0\.self_attn\.q_proj"),
        ("Qwen3", {"tie_word_embeddings": False, "rope_parameters": LINEAR}, r"no rotary embeddings of the type"),
        ("Gemma", {}, r"only LLaMA, .* Other formats take it: onnx, openvino, vllm\."),
    ],
)
def test_refusals_name_the_reason_and_another_export(family, settings, message, tmp_path):
    model = make_decoder(family, steps=0, **settings)
    gating.prune_heads(model, {0: [0, 1]})
    with pytest.raises(ValueError, match=message):
        export.export_gguf(model, tmp_path / "model.gguf")
    assert not list(tmp_path.iterdir())


def test_models_that_are_no_decoders_are_refused(tmp_path):
    sizes = {"d_model": 16, "d_kv": 8, "num_heads": 2, "d_ff": 32, "num_layers": 1, "vocab_size": 40}
    with pytest.raises(
        ValueError, match=r"is not a decoder that writes text\. Other formats take it: onnx, openvino\."
    ):
        export.export_gguf(T5ForConditionalGeneration(T5Config(**sizes)), tmp_path / "model.gguf")
    with pytest.raises(ValueError, match="only LLaMA, Mistral, Qwen2 and Qwen3"):
        export.export_gguf(GPT2LMHeadModel(GPT2Config(n_embd=16, n_head=2, n_layer=1)), tmp_path / "model.gguf")


def test_a_sliding_window_shortens_the_context(tmp_path):
    model = make_decoder("Mistral", sliding_window=50)
    remove(model, UNEVEN)
    report = export.export_gguf(model, tmp_path / "model.gguf", dtype="f32")
    assert "The context is 50 tokens instead of 128" in report.sentences[1]
    fields = gguf.GGUFReader(report.path).fields
    assert fields["deci.context_length"].contents() == 50


def test_files_are_replaced_whole_or_not_at_all(llama, tmp_path, monkeypatch):
    path = tmp_path / "model.gguf"
    export.export_gguf(llama, path)
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match="exists already"):
        export.export_gguf(llama, path)
    monkeypatch.setattr(export, "make_prompts", lambda model, **_: ([[5]], 3))
    monkeypatch.setattr(export, "run_llama_cpp", lambda *_, **__: Answer([[0, 0, 0]], [], []))
    with pytest.raises(RuntimeError, match=r"writes other tokens than the model: only . of 3 .* Nothing was written"):
        export.export_gguf(llama, path, overwrite=True)
    assert path.read_bytes() == before
    assert [found.name for found in tmp_path.iterdir()] == ["model.gguf"]


def test_a_file_in_its_place_is_renamed(llama, tmp_path):
    path = export.export_gguf(llama, tmp_path / "model.gguf").path
    whole = path.read_bytes()
    path.write_text("precious")
    assert export.export_gguf(llama, path, overwrite=True).path.read_bytes() == whole
    assert (tmp_path / "model.1.gguf").read_text() == "precious"


def test_a_damaged_file_is_reported_by_llama_cpp(llama, tmp_path):
    path = export.export_gguf(llama, tmp_path / "model.gguf").path
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(RuntimeError, match=r"llama\.cpp does not run the file \(.*"):
        run_llama_cpp(path, [[5]], count=3, context=64)


def test_without_llama_cpp_the_report_says_that_the_file_is_not_checked(llama, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    report = export.export_gguf(llama, tmp_path / "model.gguf")
    assert "Not checked: for a check in llama.cpp, pip install xllamacpp" in report.sentences


def test_other_tokens_at_near_ties_are_counted(llama):
    prompts, count = make_prompts(llama)
    written = [write_greedily(llama, prompt, count) for prompt in prompts]
    assert check_tokens(llama, prompts, written, tolerance=0.0, runtime="r") == TokenCheck(200, 200, 0.0)
    second = [[*tokens[:-1], (tokens[-1] + 1) % 263] for tokens in written]
    check = check_tokens(llama, prompts, second, tolerance=None, runtime="r")
    assert check.num_equal == 195
    assert "195 of 200 greedy tokens are the model's own" in check.describe("r")
    with pytest.raises(RuntimeError, match="r writes other tokens than the model: only 195 of 200"):
        check_tokens(llama, prompts, second, tolerance=1e-6, runtime="r")


def test_models_with_gates_or_without_numbers_are_refused(llama, tmp_path):
    gated = make_decoder("Llama", steps=0)
    gating.inject_gates(gated)
    with pytest.raises(ValueError, match=r"still has gates: call gating\.finalize"):
        export.export_gguf(gated, tmp_path / "model.gguf")
    llama.lm_head.weight.data[3, 0] = 1e6
    with pytest.raises(ValueError, match=r"has values beyond the range of f16: give bf16 or f32"):
        export.export_gguf(llama, tmp_path / "model.gguf")
    llama.lm_head.weight.data[3, 0] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        export.export_gguf(llama, tmp_path / "model.gguf")
    prompts, count = make_prompts(llama)
    with pytest.raises(RuntimeError, match="r writes other tokens than the model"):
        check_tokens(llama, prompts, [[5] * count for _ in prompts], tolerance=1e-3, runtime="r")
    assert not list(tmp_path.iterdir())


def test_yarn_with_settings_that_a_file_has_no_place_for_is_refused():
    model = make_decoder("Llama", steps=0, rope_parameters={**YARN, "beta_fast": 8.0})
    with pytest.raises(ValueError, match="YaRN with beta_fast is not that of llama"):
        find_architecture(model)


def test_texts_end_where_the_model_ends_them(llama, tmp_path):
    llama.generation_config.eos_token_id = [7, 2, 1000]
    for name, made, ends in (("none", None, (7, 2)), ("own", make_tokenizer(), (2, 7))):
        file = export.export_gguf(llama, tmp_path / name, tokenizer=made).path
        fields = gguf.GGUFReader(file).fields
        assert tuple(fields[f"tokenizer.ggml.{kind}_token_id"].contents() for kind in ("eos", "eot")) == ends
        assert "tokenizer.ggml.eom_token_id" not in fields
