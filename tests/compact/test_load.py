"""Loading of compact folders gives equal models."""

import pytest
import torch
import transformers

import gating
from gating.compact.load import load_compact
from gating.compact.save import save_compact
from tests.conftest import SAVED
from tests.support.tiny_models import FAMILIES, assert_same_state, batch_for, logits_of, state_of


@pytest.mark.parametrize("name", SAVED)
def test_load_compact_gives_equal_outputs(saved, name):
    one = saved[name]
    model = load_compact(one.folder)
    assert not model.training
    assert torch.equal(logits_of(model, one.batch), one.logits)
    assert_same_state(model, state_of(one.model))


@pytest.mark.parametrize("dtype", [torch.bfloat16, "bfloat16"])
def test_load_compact_takes_the_given_dtype(dtype, saved, tmp_path):
    model = load_compact(saved["bert"].folder, dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    save_compact(model, tmp_path / "half")
    assert load_compact(tmp_path / "half").dtype == torch.bfloat16


def test_a_loaded_model_has_its_original_head_numbers(saved):
    model = load_compact(saved["bert"].folder)
    assert [block.head_ids for block in gating.find_attention_blocks(model)] == [(0, 2, 3), (), (0, 1, 2, 3)]
    assert gating.prune_heads(model, {0: [2]}).kept_heads["encoder.layer.0.attention.self"] == (0, 3)


def test_a_finalized_model_loads_equal(bert, gates, tmp_path):
    with torch.no_grad():
        gates.log_alpha.copy_(torch.linspace(-3, 3, 12))
    gating.finalize(bert, gates, num_heads=5)
    save_compact(bert, tmp_path / "compact")
    batch = batch_for(bert)
    assert torch.equal(logits_of(load_compact(tmp_path / "compact"), batch), logits_of(bert.eval(), batch))


def test_a_model_with_tied_weights_loads_equal(tmp_path):
    config = transformers.BertConfig(
        vocab_size=60, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=16
    )
    model = transformers.BertForMaskedLM(config).eval()
    gating.prune_heads(model, {0: [1], 1: range(4)})
    save_compact(model, tmp_path / "compact")
    loaded = load_compact(tmp_path / "compact")
    batch = {"input_ids": torch.arange(5, 15)[None]}
    assert torch.equal(logits_of(loaded, batch), logits_of(model, batch))


@pytest.mark.parametrize("name", [name for name in SAVED if name != "whole"])
def test_without_remote_code_transformers_refuses(saved, name):
    one = saved[name]
    auto = (
        transformers.AutoModelForImageClassification
        if name == "vit"
        else transformers.AutoModelForSequenceClassification
    )
    # The last words are the remedy, not that sizes may be ignored, which would draw new weights.
    remedy = r"trust_remote_code=True, or with gating\.load_compact$"
    for cls in (auto, transformers.AutoModel, type(one.model).dense_class):
        for options in ({}, {"ignore_mismatched_sizes": True}, {"attn_implementation": "eager"}):
            with pytest.raises(ValueError, match=remedy):
                cls.from_pretrained(one.folder, **options)
    if name != "vit":
        with pytest.raises(ValueError, match=r"trust_remote_code=True, or with gating\.load_compact\s*$"):
            transformers.pipeline("text-classification", model=str(one.folder), device="cpu")


@pytest.mark.parametrize("options", [{}, {"output_attentions": True}, {"config": "own"}, {"config": "name"}])
def test_the_class_of_a_compact_model_loads_with_any_options(saved, options):
    one = saved["bert"]
    cls = type(one.model)
    if "config" in options:
        config = transformers.AutoConfig.from_pretrained(one.folder)
        options = {"config": config if options["config"] == "own" else str(one.folder)}
    loaded = cls.from_pretrained(one.folder, **options)
    # Attentions are returned by another kernel.
    torch.testing.assert_close(logits_of(loaded, one.batch), one.logits)
    assert not hasattr(loaded.config, "transformers_weights")
    assert loaded.config.output_attentions == options.get("output_attentions", False)


def test_a_model_with_all_heads_loads_without_remote_code(saved):
    one = saved["whole"]
    model = transformers.AutoModelForSequenceClassification.from_pretrained(one.folder)
    assert torch.equal(logits_of(model, one.batch), one.logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_dense_folder_of_transformers_loads_too(make_model, tmp_path, family, recwarn):
    model = make_model(family)
    model.save_pretrained(tmp_path)
    batch = batch_for(model)
    loaded = load_compact(tmp_path)
    assert not recwarn  # Such folders have no checksums.
    assert torch.equal(logits_of(loaded, batch), logits_of(model, batch))


def test_sharded_weights_load_equal(saved, tmp_path):
    one = saved["bert"]
    one.model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert not (tmp_path / "model.safetensors").exists()
    assert torch.equal(logits_of(load_compact(tmp_path), one.batch), one.logits)
    max(tmp_path.glob("model-*.safetensors")).unlink()
    with pytest.raises(FileNotFoundError, match=r"\.safetensors"):
        load_compact(tmp_path)
