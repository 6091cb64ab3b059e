"""Loading folders: whole ones, damaged ones, and such as somebody has made to do harm."""

import json
import os
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import gating
from gating.compact.load import load_compact
from gating.compact.save import save_compact
from gating.structure.integrity import write_checksums
from tests.conftest import SAVED
from tests.support.family_models import FAMILIES as ALL_FAMILIES
from tests.support.tiny_models import FAMILIES, assert_same_state, batch_for, logits_of, state_of

SECOND = "encoder.layer.1.attention.self"


def edit_config(folder, change):
    """Change a configuration as somebody would who knows of checksums."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))
    write_checksums(folder)


def edit_weights(folder, change):
    path = folder / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})
    write_checksums(folder)


@pytest.mark.parametrize("name", SAVED)
def test_load_compact_gives_equal_outputs(saved, name):
    one = saved[name]
    model = load_compact(one.folder)
    assert not model.training
    assert torch.equal(logits_of(model, one.batch), one.logits)
    assert_same_state(model, state_of(one.model))


def test_load_compact_takes_the_type_asked_for(saved, tmp_path):
    model = load_compact(saved["bert"].folder, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    save_compact(model, tmp_path / "half")
    assert load_compact(tmp_path / "half").dtype == torch.bfloat16


def test_a_loaded_model_knows_its_original_head_numbers(saved):
    model = load_compact(saved["bert"].folder)
    assert [block.head_ids for block in gating.find_attention_blocks(model)] == [(0, 2, 3), (), (0, 1, 2, 3)]
    assert gating.prune_heads(model, {0: [2]}).kept_heads["encoder.layer.0.attention.self"] == (0, 3)


def test_a_finalized_model_loads_equal(bert, tmp_path):
    gates = gating.inject_gates(bert)
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
    with pytest.raises(RuntimeError, match=r"size mismatch|ignore_mismatched_sizes"):
        auto.from_pretrained(one.folder)
    base = type(one.model).dense_class
    with pytest.raises(RuntimeError, match=r"size mismatch|ignore_mismatched_sizes"):
        base.from_pretrained(one.folder)


def test_a_model_that_lost_nothing_loads_rightly_without_remote_code(saved):
    one = saved["whole"]
    model = transformers.AutoModelForSequenceClassification.from_pretrained(one.folder)
    assert torch.equal(logits_of(model, one.batch), one.logits)


@pytest.mark.parametrize("missing", ["", "config.json", "model.safetensors"])
def test_a_missing_file_is_named(folder, missing):
    (shutil.rmtree if missing == "" else os.remove)(folder / missing)
    with pytest.raises(FileNotFoundError, match=f"{missing or 'compact'} does not exist"):
        load_compact(folder)


def set_kept(heads):
    return lambda config: config["head_gating"]["blocks"][SECOND].update(kept_heads=heads)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_kept([0]), r"compact is damaged or mixed.*encoder\.layer\.1\.attention"),
        (set_kept([0, 4]), rf"block '{SECOND}' has heads 0 to 3, but kept_heads is \[0, 4\]"),
        (set_kept("all"), rf"block '{SECOND}' has no list of kept heads"),
        (set_kept(None), "has no list of kept heads"),
        (
            lambda config: config["head_gating"]["blocks"].pop(SECOND),
            f"does not mention the attention block '{SECOND}'",
        ),
        (lambda config: config["head_gating"].update(format=99), "its format is 99, and this version reads format 1"),
        (lambda config: config.update(head_gating=[]), "not a table of blocks"),
        (lambda config: config.update(head_gating=None), "record|head_gating|damaged"),
        (lambda config: config.pop("head_gating"), "compact is damaged or mixed"),
        (lambda config: config.update(num_attention_heads=8), "."),
        (lambda config: config.update(architectures=["NoSuchModel"]), "architecture 'NoSuchModel'"),
        (lambda config: config.pop("architectures"), "architecture"),
        (lambda config: config["architectures"].clear(), "architecture"),
    ],
)
def test_a_damaged_configuration_is_refused_in_a_sentence(folder, change, message):
    edit_config(folder, change)
    with pytest.raises(ValueError, match=f"(?s){message}"):
        load_compact(folder)


def test_a_configuration_that_is_no_json_is_refused_by_name(folder):
    (folder / "config.json").write_text('{"model_type": "bert", ')
    with pytest.raises((ValueError, OSError), match=r"config\.json"):
        load_compact(folder)


def rename_weight(weights):
    weights["bert.something"] = weights.pop("classifier.weight")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop("bert.encoder.layer.0.attention.self.query.weight"), "query.weight"),
        (lambda weights: weights.pop("classifier.bias"), "classifier.bias"),
        (lambda weights: weights.update(extra=torch.ones(1)), "extra"),
        (rename_weight, "classifier.weight|something"),
    ],
)
def test_weights_that_do_not_fit_the_record_are_refused_by_name(folder, change, message):
    edit_weights(folder, change)
    with pytest.raises(ValueError, match=f"compact is damaged or mixed.*({message})"):
        load_compact(folder)


@pytest.mark.parametrize("size", [0, 5, 1000, -10])
def test_truncated_weights_are_refused_by_name(folder, size):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        load_compact(folder)


def test_weights_of_another_compact_model_are_refused(folder, saved):
    shutil.copy(saved["whole-or-emptied"].folder / "model.safetensors", folder)
    with pytest.raises(ValueError, match=r"model\.safetensors is not what was saved with this model"):
        load_compact(folder)
    write_checksums(folder)
    with pytest.raises(ValueError, match="damaged or mixed from two models"):
        load_compact(folder)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_dense_folder_of_transformers_loads_too(make_model, tmp_path, family):
    model = make_model(family)
    model.save_pretrained(tmp_path)
    batch = batch_for(model)
    assert torch.equal(logits_of(load_compact(tmp_path), batch), logits_of(model, batch))


# Folders that somebody has made to do harm. They know of checksums.

RECORD = "head_gating"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 10**12}, "far larger than its weights"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers=1000000000 cannot be"),
        ({"num_attention_heads": 10**9}, "compact (cannot be loaded|is damaged)"),
        ({"num_attention_heads": 0}, "compact cannot be loaded"),
        ({"num_attention_heads": -4}, "compact|record"),
        ({"hidden_size": -32}, "compact cannot be loaded"),
        ({"hidden_size": "32"}, "compact cannot be loaded"),
        ({"hidden_size": None}, "compact cannot be loaded"),
        ({"vocab_size": 0}, "compact"),
        ({"hidden_act": "no such function"}, "compact cannot be loaded"),
        ({"dtype": "load"}, "compact cannot be loaded"),
        ({"id2label": ["a"]}, "compact cannot be loaded"),
        ({"id2label": {"0": "only one"}}, "compact is damaged or mixed"),
        ({"model_type": "../../etc"}, "compact cannot be loaded"),
        ({"model_type": "vit"}, "compact"),
        ({"model_type": 3}, "compact cannot be loaded"),
        ({"architectures": ["BertModel"]}, "compact is damaged or mixed"),
        ({"architectures": ["RobertaForSequenceClassification"]}, "is not of the type 'bert'"),
        ({"architectures": ["BertConfig"]}, "which transformers does not have"),
        ({"architectures": ["__loader__"]}, "which transformers does not have"),
        ({"architectures": [["x"]]}, "which transformers does not have"),
        ({"architectures": "Bert"}, "which transformers does not have"),
        ({"auto_map": {"AutoConfig": "evil.Config"}}, r"names code \(auto_map\) that is not of a compact model"),
        ({"auto_map": {"AutoModel": "me/evil--compact.BertModel"}}, "names code"),
        ({"auto_map": {"AutoModel": "../compact.BertModel"}}, "names code"),
        ({"auto_map": "compact.BertModel"}, "names code"),
        ({"text_config": {"base_model_name_or_path": "me/model"}}, "asks for an adapter of another model"),
        ({"transformers_weights": "adapter_model.bin"}, "asks for weights from another file"),
        ({"quantization_config": {"quant_method": "gptq"}}, "asks for weights that are quantized"),
        ({"attn_implementation": "me/kernel"}, "asks for a kernel from elsewhere"),
        ({"_attn_implementation_internal": "me/kernel"}, "asks for a kernel from elsewhere"),
        ({"text_config": [{"_attn_implementation": {"": "me/kernel"}}]}, "asks for a kernel from elsewhere"),
        ({"__class__": "x"}, "compact cannot be loaded"),
    ],
)
def test_a_hostile_configuration_is_refused_in_a_sentence(folder, change, message):
    edit_config(folder, lambda config: config.update(change))
    with pytest.raises(ValueError, match=message) as caught:
        load_compact(folder)
    assert "\n" not in str(caught.value)


def test_code_in_the_folder_is_not_run(folder, tmp_path):
    for path in folder.glob("*.py"):
        path.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    load_compact(folder)
    assert not (tmp_path / "ran").exists()


def test_a_pickle_beside_the_weights_is_not_opened(folder):
    (folder / "pytorch_model.bin").write_bytes(b"not even a pickle")
    load_compact(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="as a pickle, which could run any code"):
        load_compact(folder)


def test_an_adapter_is_refused(folder):
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "me/model"}')
    with pytest.raises(ValueError, match="holds an adapter"):
        load_compact(folder)


def test_weights_of_two_layers_that_were_swapped_are_refused(folder):
    path = folder / "model.safetensors"
    weights = load_file(path)
    first, third = (f"bert.encoder.layer.{layer}.output.dense.weight" for layer in (0, 2))
    weights[first], weights[third] = weights[third], weights[first]
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"model\.safetensors is not what was saved"):
        load_compact(folder)


def test_the_configuration_of_another_compact_model_is_refused(folder, make_model, tmp_path):
    model = make_model("bert")
    gating.prune_heads(model, {0: [0], 1: range(4)})  # as many heads, but others
    save_compact(model, tmp_path / "other")
    shutil.copy(tmp_path / "other" / "config.json", folder)
    with pytest.raises(ValueError, match=r"model\.safetensors is not what was saved"):
        load_compact(folder)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.bool])
def test_weights_without_fractions_are_refused(folder, dtype):
    name = "bert.encoder.layer.0.output.dense.weight"
    edit_weights(folder, lambda weights: weights.update({name: weights[name].to(dtype)}))
    with pytest.raises(ValueError, match=rf"{name} is of the type .* has no fractions"):
        load_compact(folder)


def test_heads_of_a_block_that_the_model_does_not_have_are_refused(folder):
    block = {"num_heads": 4, "kept_heads": [0]}
    edit_config(folder, lambda config: config[RECORD]["blocks"].update({"encoder.layer.7.attention.self": block}))
    with pytest.raises(ValueError, match=r"has heads of 'encoder\.layer\.7\.attention\.self', which .* does not have"):
        load_compact(folder)


def test_weights_in_parts_load_equal(saved, tmp_path):
    one = saved["bert"]
    one.model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert not (tmp_path / "model.safetensors").exists()
    assert torch.equal(logits_of(load_compact(tmp_path), one.batch), one.logits)
    max(tmp_path.glob("model-*.safetensors")).unlink()
    with pytest.raises(FileNotFoundError, match=r"model-.*\.safetensors does not exist"):
        load_compact(tmp_path)


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_every_family_loads_equal_with_uneven_and_emptied_layers(family, tmp_path):
    model = ALL_FAMILIES[family].build()
    blocks = gating.find_attention_blocks(model)
    group = max(block.num_heads // block.num_key_value_heads for block in blocks)
    heads = {block.name: range(group) for block in blocks[1:]} | {blocks[0].name: range(blocks[0].num_heads)}
    gating.prune_heads(model, heads)
    save_compact(model, tmp_path / "compact")
    assert_same_state(load_compact(tmp_path / "compact"), state_of(model))
