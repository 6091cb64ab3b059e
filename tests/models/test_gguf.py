"""Models in GGUF files: unpacked once, with the weights and tokens of the file."""

from functools import partial

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, Gemma2Config

import gating
from gating.data.tokens import load_tokenizer
from gating.errors import InputError
from gating.models import gguf as unpacking
from gating.models.sources import Pretrained, short_name
from tests.serving.decoders import make_decoder, make_tokenizer

gguf = pytest.importorskip("gguf", reason="the package gguf is not installed")

TEXT = "Hello, world! It's 12345 o'clock."


@pytest.fixture
def model():
    return make_decoder("Llama").eval()


@pytest.fixture
def write(model, tmp_path, monkeypatch):
    """Write the model as a GGUF file of a type, with a cache of its own."""
    assets = partial(unpacking.cached_assets_path, assets_dir=tmp_path / "assets")
    monkeypatch.setattr(unpacking, "cached_assets_path", assets)
    unpacking._unpack.cache_clear()

    def write_file(dtype, other=None):
        from gating.serving.gguf.gguf_export import export_gguf

        folder = gating.save_compact(other or model, tmp_path / "model", tokenizer=make_tokenizer(), overwrite=True)
        return export_gguf(folder, tmp_path / f"tiny.{dtype}.gguf", dtype=dtype).path

    return write_file


def test_the_folder_has_the_outputs_and_the_tokens_of_the_model(write, model):
    folder = unpacking.unpack_gguf(write("f32"))
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    tokens = torch.arange(3, 23)[None]
    assert torch.allclose(loaded(tokens).logits, model(tokens).logits, atol=1e-5)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer(TEXT).input_ids == make_tokenizer()(TEXT).input_ids
    # transformers adds <|endoftext|>, which the model has no embedding of.
    assert tokenizer.get_vocab() == make_tokenizer().get_vocab()


def test_quantized_weights_are_those_of_the_file_in_full_precision(write):
    file = write("q8_0")
    folder = unpacking.unpack_gguf(file)
    weight = AutoModelForCausalLM.from_pretrained(folder).model.layers[0].mlp.down_proj.weight
    stored = next(one for one in gguf.GGUFReader(file).tensors if one.name == "blk.0.ffn_down.weight")
    assert weight.dtype == torch.float32
    assert torch.equal(weight, torch.from_numpy(gguf.dequantize(stored.data, stored.tensor_type)))


def test_a_file_is_unpacked_once_whatever_its_name(write, monkeypatch):
    file = write("f16")
    folder = unpacking.unpack_gguf(file)
    moved = file.rename(file.with_name("other.gguf"))
    monkeypatch.setattr(unpacking, "_write", None)
    assert unpacking.unpack_gguf(moved) == folder


def test_a_source_of_a_run_reads_it(write, model):
    source = Pretrained(str(write("f16")))
    assert source.load_config().num_hidden_layers == model.config.num_hidden_layers
    assert source.load(AutoModelForCausalLM).dtype == torch.float32
    assert short_name(source) == "tiny.f16, dequantized"


@pytest.mark.parametrize("content", [b"", b"GGUF", b"no weights at all"])
def test_damaged_files_are_refused_and_leave_nothing(content, tmp_path, write):
    file = tmp_path / "damaged.gguf"
    file.write_bytes(content)
    with pytest.raises(InputError, match="GGUF file"):
        unpacking.unpack_gguf(file)
    assert not [path for path in (tmp_path / "assets").rglob("*") if path.is_dir() and path.name == "new"]


def test_weights_that_transformers_leaves_out_are_not_lost_in_silence(write):
    """llama.cpp's llama may have biases of queries, keys and values, which transformers passes over."""
    file = write("f32", make_decoder("Qwen2"))
    with pytest.raises(InputError, match="384,672 weights"):
        unpacking.unpack_gguf(file)


def test_scaled_rotary_embeddings_of_llama_3_are_not_lost_in_silence(write):
    rope = {"rope_type": "llama3", "rope_theta": 5e5, "original_max_position_embeddings": 1024, "factor": 32.0}
    rope |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    file = write("f32", make_decoder("Llama", rope_parameters=rope, max_position_embeddings=4096))
    with pytest.raises(InputError, match=r"rope_freqs\.weight"):
        unpacking.unpack_gguf(file)


def rewrite(file, changes):
    """Write a GGUF file with other values (None to leave one out), and other names of tensors."""
    reader = gguf.GGUFReader(file)
    values = {key: one.contents() for key, one in reader.fields.items() if not key.startswith("GGUF.")}
    writer = gguf.GGUFWriter(file.with_name("changed.gguf"), values.pop("general.architecture"))
    values |= {key if key.startswith("general.") else f"llama.{key}": value for key, value in changes.items()}
    kinds = {bool: "bool", int: "uint32", float: "float32", str: "string", list: "array"}
    for key, value in values.items():
        if value is not None:
            getattr(writer, f"add_{kinds[type(value)]}")(key, value)
    for one in reader.tensors:
        writer.add_tensor(changes.get(one.name, one.name), one.data, raw_dtype=one.tensor_type)
    for step in ("header", "kv_data", "tensors"):
        getattr(writer, f"write_{step}_to_file")()
    writer.close()
    return file.with_name("changed.gguf")


EPSILON = "attention.layer_norm_rms_epsilon"


REFUSED = [
    ({"rope.scaling.type": "linear"}, "rope.scaling.type=linear"),
    # The number of the token that ends texts is 2.
    ({"rope.scaling.attn_factor": 2.0}, "rope.scaling.attn_factor=2"),
    ({"rope.scaling.factor": float("nan")}, "rope.scaling.factor=nan"),
    ({"rope.scaling.factor": 10_000.0}, "rope.scaling.factor=1e[+]04"),
    ({"attention.scale": 0.02}, "attention.scale=0.02"),
    ({"rope.scaling.unknown": 3}, "rope.scaling.unknown=3"),
    ({"attention.causal": False}, "attention.causal=False"),
    ({"rope.dimension_count": 16}, "rope.dimension_count=16"),
    ({"rope.freq_base": 0.0}, "rope.freq_base=0"),
    ({"final_logit_softcapping": 5.0}, "final_logit_softcapping=5"),
    ({"block_count": 20_000}, "block_count=20000"),
    ({"embedding_length": 10**9}, "383,136 weights, and the LlamaForCausalLM .* 3,991,000,000,000"),
    ({EPSILON: None}, f"no {EPSILON}"),
    ({"attention.head_count": 0}, r"transformers does not read the GGUF file .*ZeroDivisionError"),
    ({"blk.1.ffn_up.weight": "blk.1.ffn_other.weight"}, r"no weights for model\.layers\.1\.mlp\.up_proj\.weight"),
]


def test_what_transformers_reads_otherwise_than_llama_cpp_is_refused_and_named(write):
    file = write("f32")
    for changes, named in REFUSED:
        with pytest.raises(InputError, match=named):
            unpacking.unpack_gguf(rewrite(file, changes))


def test_values_without_effect_and_those_that_transformers_reads_are_not_refused(write):
    neutral = {"rope.scaling.type": "none", "rope.scaling.factor": 1.0, "rope.scaling.original_context_length": 64}
    read = {"general.name": "mistral", "rope.freq_base": 5e5, "attention.causal": True, EPSILON: 1e-3}
    config = AutoConfig.from_pretrained(unpacking.unpack_gguf(rewrite(write("f32"), {**neutral, **read})))
    assert (config.rms_norm_eps, config.rope_parameters["rope_theta"]) == (pytest.approx(1e-3), 5e5)


@pytest.mark.parametrize("width", [12, 24])
def test_heads_of_qwen3_have_the_width_of_the_file(write, width):
    other = make_decoder("Qwen3", head_dim=width)
    loaded = AutoModelForCausalLM.from_pretrained(unpacking.unpack_gguf(write("f32", other)))
    tokens = torch.arange(3, 23)[None]
    assert torch.allclose(loaded(tokens).logits, other(tokens).logits, atol=1e-5)


def test_gemma_scales_queries_by_the_width_of_a_head_as_llama_cpp_does():
    config = Gemma2Config(num_hidden_layers=0)
    for width, differing in ((256, []), (128, ["attention.key_length=128"])):
        assert list(unpacking._differing(config, {EPSILON: 1e-6, "attention.key_length": width}, [])) == differing


def test_a_file_without_a_tokenizer_is_a_model_whose_run_names_one(model, tmp_path, write):
    from gating.serving.gguf.gguf_export import export_gguf

    file = str(export_gguf(model, tmp_path / "numbers.gguf", dtype="f32").path)
    with pytest.warns(UserWarning, match="transformers reads no tokenizer"):
        assert Pretrained(file).load(AutoModelForCausalLM).dtype == torch.float32
    with pytest.raises(InputError, match=r"model\.tokenizer="):
        load_tokenizer(Pretrained(file))
