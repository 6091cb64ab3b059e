"""Saved compact folders are complete, readable by others, and hold no pickle."""

import os
from pathlib import Path

import pytest
import torch
import transformers

import gating
from gating.compact.load import load_compact
from gating.compact.save import save_compact
from tests.conftest import TEXTS
from tests.support.tiny_models import NUM_HEADS, batch_for, logits_of


@pytest.fixture
def pruned(bert):
    gating.prune_heads(bert, {0: [1], 1: range(NUM_HEADS)})
    return bert


def test_the_folder_holds_everything_and_no_pickle(saved):
    names = {path.name for path in saved["bert"].folder.rglob("*")}
    assert {"config.json", "model.safetensors", "README.md", "tokenizer.json", "modeling_compact.py"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pth", ".pkl", ".ckpt", ".pyc"))]


def test_the_folder_can_be_read_by_others(saved):
    mask = os.umask(0)
    os.umask(mask)
    assert saved["bert"].folder.stat().st_mode & 0o055 == 0o055 & ~mask


@pytest.mark.filterwarnings("ignore:.*torch.ao.quantization is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
@pytest.mark.filterwarnings("ignore:must run observer:UserWarning")  # of the emptied layer, which has no weight
@pytest.mark.parametrize("layers", [{"classifier"}, {torch.nn.Linear}])
def test_packed_weights_are_refused_and_nothing_is_written(pruned, layers, tmp_path):
    settings = dict.fromkeys(layers, torch.ao.quantization.default_dynamic_qconfig)
    quantized = torch.ao.quantization.quantize_dynamic(pruned, settings)
    with pytest.raises((AttributeError, TypeError, ValueError)):
        save_compact(quantized, tmp_path / "new")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("stock", [True, False])
@pytest.mark.parametrize("crash", [False, True])
def test_saving_leaves_the_class_and_the_configuration_of_a_dense_model(stock, crash, bert, tmp_path, monkeypatch):
    cls, described = type(bert), bert.config.to_dict()
    if crash:
        crash_in_card(monkeypatch, bert)
        with pytest.raises(ValueError, match="no card"):
            save_compact(bert, tmp_path / "compact", stock=stock)
    else:
        batch = batch_for(bert)
        loaded = load_compact(save_compact(bert, tmp_path / "compact", stock=stock))
        assert torch.equal(logits_of(loaded, batch), logits_of(bert, batch))
    assert type(bert) is cls
    assert bert.config.to_dict() == described


def test_a_tokenizer_is_saved_with_the_model(saved, tokenizer):
    loaded = transformers.AutoTokenizer.from_pretrained(saved["bert"].folder)
    assert loaded(TEXTS)["input_ids"] == tokenizer(TEXTS)["input_ids"]


@pytest.mark.parametrize("name", ["bert", "distilbert"])
def test_a_pipeline_gives_the_same_scores_where_the_package_is_missing(saved, fresh_answers, tokenizer, name):
    one, answer = saved[name], fresh_answers["remote"][name]
    assert "error" not in answer, answer.get("error")
    for text, scores in zip(TEXTS, answer["scores"], strict=True):
        encoded = tokenizer(text, return_tensors="pt")
        logits = logits_of(one.model, {key: encoded[key] for key in ("input_ids", "attention_mask")})
        # A pipeline may pad, which adds in another order.
        torch.testing.assert_close(torch.tensor(scores), logits.softmax(-1)[0], rtol=0, atol=1e-5)


def test_gates_are_not_saved(bert, tmp_path):
    gating.inject_gates(bert)
    with pytest.raises(ValueError, match=r"gating\.finalize"):
        save_compact(bert, tmp_path / "compact")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_existing_files_are_not_overwritten_by_default(pruned, tmp_path, kind):
    target = tmp_path / "compact"
    if kind == "folder":
        target.mkdir()
        (target / "precious").write_text("data")
    else:
        target.write_text("data")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        save_compact(pruned, target)
    assert os.listdir(tmp_path) == ["compact"]
    assert (target / "precious" if kind == "folder" else target).read_text() == "data"


def test_an_empty_folder_is_used(pruned, tmp_path):
    (tmp_path / "compact").mkdir()
    save_compact(pruned, tmp_path / "compact")
    assert load_compact(tmp_path / "compact")


def test_overwriting_renames_the_whole_folder(pruned, folder, tmp_path):
    (folder / "notes.txt").write_text("mine")
    save_compact(pruned, folder, overwrite=True)
    assert (tmp_path / "compact.1" / "notes.txt").read_text() == "mine"
    assert not (folder / "notes.txt").exists()
    assert sorted(os.listdir(tmp_path)) == ["compact", "compact.1"]


def crash_in_tokenizer(monkeypatch, model):
    class Broken:
        def save_pretrained(self, folder):
            raise OSError("disk full")

    return Broken()


def crash_in_model(monkeypatch, model):
    def half(folder):
        (Path(folder) / "config.json").write_text("{")
        raise KeyboardInterrupt

    monkeypatch.setattr(model, "save_pretrained", half)


def crash_in_card(monkeypatch, model):
    def fail(*_, **__):
        raise ValueError("no card")

    monkeypatch.setattr("gating.compact.save.write_card", fail)


def crash_in_move(monkeypatch, model):
    rename = Path.rename

    def fail(self, target):
        if self.name == "new":
            raise OSError("no space")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)


@pytest.mark.parametrize("crash", [crash_in_tokenizer, crash_in_model, crash_in_card, crash_in_move])
@pytest.mark.parametrize("exists", [False, True])
def test_a_crash_leaves_the_old_folder_or_none(pruned, folder, tmp_path, monkeypatch, crash, exists):
    target = folder if exists else tmp_path / "other" / "compact"
    target.parent.mkdir(exist_ok=True)
    before = {path.name: path.read_bytes() for path in target.glob("*")}
    tokenizer = crash(monkeypatch, pruned)
    with pytest.raises((OSError, ValueError, KeyboardInterrupt)):
        save_compact(pruned, target, tokenizer=tokenizer, overwrite=True)
    monkeypatch.undo()
    assert target.exists() == exists
    assert {path.name: path.read_bytes() for path in target.glob("*")} == before
    assert os.listdir(target.parent) == (["compact"] if exists else [])
