"""Models with equally many units in every layer are saved as dense models that plain transformers loads."""

import json
import os
import shutil

import pytest
import torch

import gating
from gating.compact.files import write_manifest
from gating.compact.stock import StockError, read_original
from gating.proof.outputs import forward_outputs, max_relative_difference
from gating.proof.probe import make_probe
from gating.pruning.layers import build_original, build_recorded
from gating.structure.feed_forward import iter_feed_forward_blocks
from tests.support.family_models import FAMILIES, GPT2, GROUPED, IDS, SEQ2SEQ, VISION, Family
from tests.support.fresh_process import answers_of_fresh_process, outputs_of
from tests.support.tiny_models import assert_same_state, state_of

NO_HEAD_DIM = {name: value for name, value in GROUPED.items() if name != "head_dim"}
CASES = {
    "bert": (FAMILIES["bert"], "AutoModelForSequenceClassification", {"intermediate_size": 32}),
    "gpt2": (
        Family("GPT2LMHeadModel", "GPT2Config", {**GPT2, **IDS, "n_inner": None}),
        "AutoModelForCausalLM",
        {"n_inner": 240},
    ),
    "bart": (
        Family("BartForConditionalGeneration", "BartConfig", {**SEQ2SEQ, "decoder_ffn_dim": 64}),
        "AutoModelForSeq2SeqLM",
        {"encoder_ffn_dim": 32, "decoder_ffn_dim": 48},
    ),
    "swin": (FAMILIES["swin"], "AutoModelForImageClassification", {"mlp_ratio": 0.5}),
    "dinov2": (
        Family("Dinov2ForImageClassification", "Dinov2Config", {**VISION, "mlp_ratio": 2}),
        "AutoModelForImageClassification",
        {"mlp_ratio": 1},
    ),
    "clip": (FAMILIES["clip"], "AutoModel", {}),
    "gpt_neox": (FAMILIES["gpt_neox"], "AutoModelForCausalLM", {"intermediate_size": 32}),
}
# Families whose configuration describes heads of any number.
WITH_HEADS = {
    "llama": (FAMILIES["llama"], "AutoModelForCausalLM", {"num_attention_heads": 4, "num_key_value_heads": 2}),
    "qwen2": (
        Family("Qwen2ForCausalLM", "Qwen2Config", {**NO_HEAD_DIM, "hidden_size": 64}),
        "AutoModelForCausalLM",
        {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8},
    ),
    "qwen3": (FAMILIES["qwen3"], "AutoModelForCausalLM", {"num_attention_heads": 4, "num_key_value_heads": 2}),
}


def remove_neurons(model, *, share=None):
    """Remove one group of 16 neurons from every feed-forward block, or a share of its groups, always others."""
    blocks = gating.find_feed_forward_blocks(model, group_size=16)
    chosen = {}
    for number, block in enumerate(blocks):
        total = block.num_numbers
        count = 1 if share is None else round(share * total)
        chosen[block.name] = [(number + i) % total for i in range(count)]
    gating.prune_neurons(model, chosen, group_size=16)


def remove_heads(model):
    """Remove every second group of query heads, the same in all layers."""
    for block in gating.find_attention_blocks(model):
        size = block.num_heads // block.num_key_value_heads
        gating.prune_heads(model, {block.name: [head for head in block.head_ids if head // size % 2]})


@pytest.fixture(scope="module")
def stock(tmp_path_factory):
    """By name of the case: the model, its folder, its batch and outputs, and its state before saving."""
    place, saved = tmp_path_factory.mktemp("stock"), {}
    for name, (family, _, _) in {**CASES, **WITH_HEADS}.items():
        model = family.build()
        remove_neurons(model, share=0.5 if name in ("swin", "dinov2") else None)
        if name in WITH_HEADS:
            remove_heads(model)
        probe = make_probe(model)
        before = (type(model), model.config.to_dict(), state_of(model))
        folder = gating.save_compact(model, place / name, stock=True)
        saved[name] = (model, folder, probe, forward_outputs(model, probe), before)
    return saved


@pytest.fixture(scope="module")
def answers(stock):
    jobs = {
        name: {"folder": str(stock[name][1]), "auto_class": auto_class, "batch": stock[name][2]}
        for name, (_, auto_class, _) in {**CASES, **WITH_HEADS}.items()
    }
    return answers_of_fresh_process(jobs, with_package=False)


@pytest.mark.parametrize("name", [*CASES, *WITH_HEADS])
def test_plain_transformers_loads_it_with_equal_outputs(name, stock, answers):
    expected = stock[name][3]
    torch.testing.assert_close(outputs_of(answers[name])[0], expected[0], rtol=1e-5, atol=1e-5)
    assert answers[name]["modules"] == []


@pytest.mark.parametrize("name", [*CASES, *WITH_HEADS])
def test_the_configuration_has_the_sizes_and_no_record(name, stock):
    _, folder, probe, expected, _ = stock[name]
    config = json.loads((folder / "config.json").read_text())
    sizes = {**CASES, **WITH_HEADS}[name][2]
    assert {field: config[field] for field in sizes} == sizes
    assert not {"head_gating", "auto_map"} & config.keys()
    assert not list(folder.glob("*.py"))
    loaded = gating.load_compact(folder)
    assert not hasattr(loaded, "is_compact")
    assert max_relative_difference(expected, forward_outputs(loaded, probe)) == 0


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_the_model_stays_as_it_is(name, stock, tmp_path):
    model, _, probe, expected, (cls, config, state) = stock[name]
    assert type(model) is cls
    assert model.config.to_dict().keys() - {"architectures", "dtype"} == config.keys() - {"architectures", "dtype"}
    assert model.config.head_gating == config["head_gating"]
    assert_same_state(model, state)
    loaded = gating.load_compact(gating.save_compact(model, tmp_path / "compact", stock=False))
    assert max_relative_difference(expected, forward_outputs(loaded, probe)) == 0


@pytest.mark.parametrize("name", [*CASES, *WITH_HEADS])
def test_the_record_beside_it_has_the_kept_units_and_the_original_sizes(name, stock):
    model, folder, *_ = stock[name]
    loaded = gating.load_compact(folder)
    original = read_original(loaded, folder)
    assert original.head_gating == model.config.head_gating
    dense = build_original(loaded, original)
    for built, blocks in ((build_recorded(loaded, original), gating.find_attention_blocks(model)), (dense, None)):
        shown = gating.find_attention_blocks(built)
        counts = [(block.name, block.num_heads_before) for block in shown]
        assert counts == [(block.name, block.num_heads_before) for block in gating.find_attention_blocks(model)]
        assert blocks is None or [block.head_ids for block in shown] == [block.head_ids for block in blocks]
    assert sum(block.num_neurons for block in iter_feed_forward_blocks(dense)) == sum(
        block.width_before for block in iter_feed_forward_blocks(model)
    )


DOWN = "encoder.layer.0.output.dense"
RECORDS = [
    (lambda record: record.update(num_hidden_layers=10**9), "cannot be loaded|far larger"),
    (lambda record: record["head_gating"]["units"][DOWN].update(width_before=10**12), "width_before cannot be"),
    (lambda record: record.pop("head_gating"), "cannot be used: it is not a table"),
    (lambda record: record.update(vocab_size=10**12), "far larger than its weights|cannot be loaded"),
    (lambda record: record.update(intermediate_size=10**12), "far larger than its weights|cannot be loaded"),
    (lambda record: record.update(intermediate_size=2**20), "far larger than its weights|cannot be loaded"),
    (lambda record: record.update(intermediate_size=16), "cannot be used|cannot be loaded"),
]


@pytest.mark.parametrize(("change", "message"), RECORDS)
def test_an_edited_record_is_refused_and_not_needed(change, message, stock, tmp_path):
    folder = shutil.copytree(stock["bert"][1], tmp_path / "copy")
    path = folder / "head_gating.json"
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"head_gating\.json is not what was saved .* delete head_gating\.json"):
        gating.load_compact(folder)
    loaded = gating.load_compact(folder, verify=False)
    with pytest.raises(ValueError, match=r"head_gating\.json is not what was saved"):
        read_original(loaded, folder)
    # Somebody who computes the checksums anew cannot make the model larger than it may have been.
    write_manifest(folder)
    gating.load_compact(folder)
    with pytest.raises(ValueError, match=message):
        read_original(loaded, folder)
    path.write_text("{")
    with pytest.raises(ValueError, match=r"head_gating\.json"):
        read_original(loaded, folder)
    path.unlink()
    assert read_original(loaded, folder) is None


def test_a_folder_is_stock_by_default_where_it_can_be(tmp_path):
    even, uneven, whole = (FAMILIES["llama"].build() for _ in range(3))
    gating.prune_heads(even, {layer: range(4) for layer in range(3)})
    uneven_heads(uneven)
    # A model that has lost nothing needs no code either, and has no other numbers to keep.
    cases = (("even", even, True, True), ("uneven", uneven, False, False), ("whole", whole, True, False))
    for name, model, is_stock, has_record in cases:
        before = model.config.to_dict()
        folder = gating.save_compact(model, tmp_path / name)
        config = json.loads((folder / "config.json").read_text())
        beside = json.loads((folder / "head_gating.json").read_text())
        assert ("head_gating" not in config, "head_gating" in beside) == (is_stock, has_record)
        assert name == "whole" or model.config.head_gating == before["head_gating"]
    assert "head_gating" in json.loads(
        (gating.save_compact(even, tmp_path / "no", stock=False) / "config.json").read_text()
    )


def test_uneven_layers_need_no_search_and_others_fall_back(monkeypatch, tmp_path):
    model = FAMILIES["llama"].build()
    uneven_heads(model)
    monkeypatch.setattr("gating.compact.save.stock_model", pytest.fail)
    gating.save_compact(model, tmp_path / "uneven")
    monkeypatch.undo()
    bert = FAMILIES["bert"].build()
    some_heads(bert)
    assert (gating.save_compact(bert, tmp_path / "bert") / "modeling_compact.py").exists()
    hooked = FAMILIES["bert"].build()
    remove_neurons(hooked)
    hooked.bert.embeddings.register_forward_hook(lambda *_: _[2] + 1)
    with pytest.raises(ValueError, match="gives other outputs"):
        gating.save_compact(hooked, tmp_path / "hooked")
    assert not (tmp_path / "hooked").exists()


def test_nested_configurations_are_changed(stock):
    config = stock["clip"][1] / "config.json"
    described = json.loads(config.read_text())
    assert [described[part]["intermediate_size"] for part in ("text_config", "vision_config")] == [32, 32]


def test_a_stock_model_loses_neurons_again_and_is_saved_again(stock, tmp_path):
    model = gating.load_compact(stock["bert"][1])
    gating.prune_neurons(model, {layer: [1] for layer in range(3)}, group_size=16)
    folder = gating.save_compact(model, tmp_path / "again", stock=True)
    assert json.loads((folder / "config.json").read_text())["intermediate_size"] == 16


def uneven_neurons(model):
    gating.prune_neurons(model, {0: [1], 1: [0, 2]}, group_size=16)


def uneven_heads(model):
    gating.prune_heads(model, {0: [0, 1, 2, 3], 1: [0, 1]})


def padded_heads(model):
    gating.prune_heads(model, {layer: [0, 1, 2] for layer in range(3)})


def some_heads(model):
    gating.prune_heads(model, {block.name: [0, 1] for block in gating.find_attention_blocks(model)})


def no_heads(model):
    gating.prune_heads(model, {layer: range(8) for layer in range(3)})


def other_heads(model):
    for number, block in enumerate(gating.find_attention_blocks(model)):
        gating.prune_heads(model, {block.name: [number % 4]})


@pytest.mark.parametrize(
    ("family", "change"),
    [
        ("bert", uneven_neurons),
        ("llama", uneven_heads),
        ("llama", padded_heads),
        ("llama", no_heads),
        ("bert", some_heads),
        ("beit", some_heads),
        ("t5", other_heads),
        ("dinov2", remove_neurons),
    ],
)
def test_models_that_no_configuration_describes_are_refused_before_anything_is_written(family, change, tmp_path):
    model = FAMILIES[family].build()
    change(model)
    with pytest.raises(StockError, match="stock model"):
        gating.save_compact(model, tmp_path / "new", stock=True)
    assert os.listdir(tmp_path) == []
    gating.save_compact(model, tmp_path / "new", verify=False)


def test_other_outputs_after_saving_are_refused_with_the_other_form_as_remedy(bert, tmp_path):
    remove_neurons(bert)
    bert.bert.embeddings.register_forward_hook(lambda *_: _[2] + 1)
    with pytest.raises(StockError, match="stock=False"):
        gating.save_compact(bert, tmp_path / "new", stock=True)
    assert os.listdir(tmp_path) == []
