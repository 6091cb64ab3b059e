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
from sentence_transformers import SentenceTransformer

import gating
from gating.embedding.parts import SentenceProcessor
from gating.errors import UserError
from gating.models.sources import Pretrained
from gating.serving.exporting import load_model
from gating.tasks.embedding_teacher import load_sentence_model
from tests.support.tiers import first_of
from tests.support.tiny_models import batch_for, logits_of
from tests.support.tiny_sentences import make_sentence_model

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


def negate_dense(folder):
    path = folder / "2_Dense" / WEIGHTS
    save_file({name: -value for name, value in load_file(path).items()}, path)


BESIDE = {
    "2_Dense/model.safetensors": negate_dense,
    "1_Pooling/config.json": edit("1_Pooling/config.json", pooling_mode="cls"),
    "modules.json": lambda folder: (folder / "modules.json").write_text("[]"),
    "config_sentence_transformers.json": edit("config_sentence_transformers.json", prompts={"query": "find: "}),
    "sentence_bert_config.json": lambda folder: (folder / "sentence_bert_config.json").unlink(),
    "tokenizer.json": edit("tokenizer.json", normalizer=None),
    "tokenizer_config.json": edit("tokenizer_config.json", model_max_length=7),
    "special_tokens_map.json": lambda folder: (folder / "special_tokens_map.json").write_text('{"cls_token": "a"}'),
    "chat_template.jinja": lambda folder: (folder / "chat_template.jinja").write_text("hi"),
}


@pytest.fixture(scope="module")
def sentences(tmp_path_factory) -> dict[bool, Path]:
    """Return folders of a stock and of a compact model of sentence-transformers."""
    place, folders = tmp_path_factory.mktemp("sentences"), {}
    for is_stock in (True, False):
        model = SentenceTransformer(str(make_sentence_model(place / f"dense-{is_stock}", dense=16)), device="cpu")
        gating.prune_neurons(model.transformers_model, {layer: [0] for layer in range(3)}, group_size=8)
        options = {"tokenizer": SentenceProcessor(model), "stock": is_stock}
        folders[is_stock] = gating.save_compact(model.transformers_model, place / str(is_stock), **options)
    return folders


@pytest.mark.parametrize("is_stock", [True, False])
@pytest.mark.parametrize("name", BESIDE)
def test_a_change_of_tokenizer_or_modules_is_an_error(name, is_stock, sentences, tmp_path):
    folder = shutil.copytree(sentences[is_stock], tmp_path / "changed")
    BESIDE[name](folder)
    with pytest.raises(
        (UserError, FileNotFoundError), match=rf"{name} is not what was saved.*delete head_gating\.json"
    ):
        gating.load_compact(folder)
    gating.load_compact(folder, verify=False)
    if is_stock:
        with pytest.raises((UserError, FileNotFoundError), match=name):
            load_sentence_model(str(folder), setting="task.teacher")
    else:  # Its configuration has the checksums of the model.
        (folder / "head_gating.json").unlink()
        gating.load_compact(folder)


def test_a_tokenizer_may_be_used_and_saved_again_or_come_later(bert, tokenizer, sentences, tmp_path):
    folder = shutil.copytree(sentences[False], tmp_path / "same")
    own = transformers.AutoTokenizer.from_pretrained(folder)
    own(["a", "b c"], padding=True, truncation=True, max_length=3)
    own.save_pretrained(folder)
    edit("config_sentence_transformers.json", __version__={"transformers": "9"})(folder)
    gating.load_compact(folder)
    folder = gating.save_compact(bert, tmp_path / "alone", stock=True)
    tokenizer.save_pretrained(folder)
    gating.load_compact(folder)


def test_a_run_does_not_begin_with_a_compact_folder(bert, tmp_path):
    gating.prune_heads(bert, {0: [1]})
    folder = gating.save_compact(bert, tmp_path / "compact", stock=False)
    with pytest.raises(ValueError, match=r"model\.name="):
        Pretrained(str(folder)).load(transformers.AutoModelForSequenceClassification)
