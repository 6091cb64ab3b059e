"""Models in GGUF files: unpacked once, with the weights and tokens of the file."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

import gating
from gating.errors import InputError
from gating.models import gguf as unpacking
from gating.models.sources import Pretrained, short_name
from tests.serving.decoders import make_decoder, make_tokenizer
from tests.support.tiers import first_of

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


@pytest.mark.parametrize(
    "rope",
    first_of(
        [
            {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
            {"rope_type": "linear", "factor": 4.0},
            {"rope_type": "yarn", "factor": 4.0},
        ]
    ),
    ids=lambda rope: rope["rope_type"],
)
def test_scaled_rotary_embeddings_are_not_lost_in_silence(write, rope):
    """transformers reads none of them; LLaMA 3's are a tensor of factors."""
    scaled = {"rope_theta": 500_000.0, "original_max_position_embeddings": 1024, **rope}
    file = write("f32", make_decoder("Llama", rope_parameters=scaled, max_position_embeddings=4096))
    with pytest.raises(InputError, match=r"rope_freqs\.weight|rope\.scaling\.factor=4\.0"):
        unpacking.unpack_gguf(file)


@pytest.mark.parametrize(
    ("values", "dropped"),
    [
        ({}, []),
        ({"rope.scaling.type": "none", "attention.key_length": 32, "attention.causal": True}, []),
        ({"rope.scale_linear": 4.0}, ["rope.scale_linear=4.0"]),
        ({"attention.causal": False}, ["attention.causal=false"]),
        ({"rope.dimension_count": 16}, ["rope.dimension_count=16"]),
        ({"block_count": 20_000}, ["block_count=20000"]),
        ({"attention.layer_norm_rms_epsilon": 1e-3}, ["attention.layer_norm_rms_epsilon=0.001"]),
    ],
)
def test_values_that_transformers_does_not_read_are_named(values, dropped):
    fields = {f"llama.{key}": value for key, value in values.items()} | {"general.architecture": "llama"}
    reader = SimpleNamespace(
        fields={key: SimpleNamespace(contents=lambda value=value: value) for key, value in fields.items()},
        tensors=[SimpleNamespace(name="blk.0.attn_q.weight"), SimpleNamespace(name="blk.1.attn_q.weight")],
    )
    config = LlamaConfig(hidden_size=64, num_attention_heads=2, num_hidden_layers=values.get("block_count", 2))
    assert list(unpacking._dropped(config, reader)) == dropped
