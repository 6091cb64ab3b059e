"""A folder that plain transformers loads is compared with the checksums of its files."""

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import gating
from gating.errors import UserError
from gating.models.pretrained import Pretrained
from gating.serving.exporting import load_model
from tests.support.tiers import first_of
from tests.support.tiny_models import batch_for, logits_of

WEIGHTS = "model.safetensors"
QUERY = "bert.encoder.layer.{}.attention.self.query.weight"


def prune(model):
    layers = range(len(model.bert.encoder.layer))
    gating.prune_neurons(model, {layer: [layer] for layer in layers}, group_size=8)
    return model


@pytest.fixture
def stock(bert, tokenizer, tmp_path) -> Path:
    return gating.save_compact(prune(bert), tmp_path / "stock", tokenizer=tokenizer, stock=True)


@pytest.fixture
def shards(bert, tmp_path) -> Path:
    """Write a stock folder with several files of weights."""
    model = prune(bert)
    save, model_class = transformers.PreTrainedModel.save_pretrained, transformers.BertForSequenceClassification
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_class, "save_pretrained", lambda self, place: save(self, place, max_shard_size="20KB"))
        folder = gating.save_compact(model, tmp_path / "shards", stock=True)
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    return folder


def edit(name, **values):
    def change(folder):
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def edit_weights(function):
    def change(folder):
        weights = load_file(folder / WEIGHTS)
        function(weights)
        save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})

    return change


def flip_a_bit(folder):
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[-100] ^= 1
    (folder / WEIGHTS).write_bytes(content)


def swap(weights):
    weights[QUERY.format(0)], weights[QUERY.format(1)] = weights[QUERY.format(1)], weights[QUERY.format(0)]


def fine_tune(folder):
    model = transformers.BertForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        model.classifier.weight += 0.1
    model.save_pretrained(folder)


def add_generation_settings(folder):
    (folder / "generation_config.json").write_text('{"max_length": 3}')


CHANGES = {
    "a flipped bit": (flip_a_bit, WEIGHTS),
    "two tensors swapped": (edit_weights(swap), WEIGHTS),
    "another model of these shapes": (edit_weights(lambda one: [value.mul_(2) for value in one.values()]), WEIGHTS),
    "an edited epsilon": (edit("config.json", layer_norm_eps=0.1), "config.json"),
    "other labels": (edit("config.json", id2label={"0": "b", "1": "a", "2": "c"}), "config.json"),
    "weights after further training": (fine_tune, WEIGHTS),
    "settings of generation": (add_generation_settings, "generation_config.json"),
    "an edited record": (edit("head_gating.json", vocab_size=200_000), "head_gating.json"),
    "a record without the model's": (edit("head_gating.json", head_gating={}), "head_gating.json"),
    "checksums of others": (edit("head_gating.json", sha256={}), "head_gating.json"),
}


@pytest.mark.parametrize("name", first_of(CHANGES, every=4))
def test_a_change_of_the_model_is_an_error_everywhere(name, stock):
    change, file = CHANGES[name]
    gating.load_compact(stock)
    change(stock)
    for load in (
        gating.load_compact,
        partial(load_model, format="onnx"),
        lambda place: Pretrained(str(place)).load(transformers.AutoModelForSequenceClassification),
    ):
        with pytest.raises(UserError, match=rf"{file} is not what was saved.*delete head_gating\.json") as caught:
            load(stock)
    assert "verify=False" in str(caught.value)
    if name != "settings of generation":
        (stock / "head_gating.json").unlink()
        with pytest.warns(UserWarning, match=r"head_gating\.json"):
            gating.load_compact(stock)


def first_of(folder):
    return min(folder.glob("model-*.safetensors"))


def whole_beside_parts(folder):
    weights = {}
    for path in folder.glob("model-*.safetensors"):
        with safe_open(path, framework="pt") as file:
            weights |= {name: file.get_tensor(name) * 2 for name in file.keys()}  # noqa: SIM118
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def other_order(folder):
    index = json.loads((folder / f"{WEIGHTS}.index.json").read_text())
    index["metadata"]["mine"] = 1
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: first_of(folder).unlink(), "does not exist"),
        (lambda folder: first_of(folder).write_bytes(first_of(folder).read_bytes()[:-8]), "is damaged"),
        (whole_beside_parts, r"model\.safetensors is not what was saved"),
        (other_order, r"index\.json is not what was saved"),
    ],
)
def test_a_change_of_several_files_of_weights_is_an_error(change, message, shards):
    gating.load_compact(shards)
    change(shards)
    with pytest.raises((UserError, OSError), match=message):
        gating.load_compact(shards)


def test_what_does_not_change_the_model_is_no_error(stock, tmp_path, tokenizer):
    batch = batch_for(gating.load_compact(stock))
    expected = logits_of(gating.load_compact(stock), batch)
    (stock / "README.md").write_text("My card.")
    (stock / "notes.txt").write_text("mine")
    text = (stock / "config.json").read_text()
    (stock / "config.json").write_text(text.replace("\n", "\r\n"))
    tokenizer.save_pretrained(stock)
    moved = shutil.copytree(stock, tmp_path / "copy")
    assert torch.equal(logits_of(gating.load_compact(moved), batch), expected)
    assert gating.load_compact(moved, dtype=torch.float16).dtype is torch.float16
    loaded = Pretrained(str(moved)).load(transformers.AutoModelForSequenceClassification)
    assert torch.equal(logits_of(loaded.eval(), batch), expected)


@pytest.mark.parametrize("is_stock", [True, False])
def test_another_tokenizer_is_a_warning(is_stock, bert, tokenizer, tmp_path, recwarn):
    folder = gating.save_compact(prune(bert), tmp_path / "model", tokenizer=tokenizer, stock=is_stock)
    gating.load_compact(folder).save_pretrained(folder if not is_stock else tmp_path / "again")
    gating.load_compact(folder)
    assert not [warning for warning in recwarn if "what was saved" in str(warning.message)]
    edit("tokenizer_config.json", model_max_length=7)(folder)
    with pytest.warns(UserWarning, match=r"tokenizer_config\.json is not what was saved .* saved again, or is damaged"):
        gating.load_compact(folder)


def test_a_run_does_not_begin_with_a_compact_folder(bert, tmp_path):
    gating.prune_heads(bert, {0: [1]})
    folder = gating.save_compact(bert, tmp_path / "compact", stock=False)
    with pytest.raises(ValueError, match=r"model\.name="):
        Pretrained(str(folder)).load(transformers.AutoModelForSequenceClassification)
