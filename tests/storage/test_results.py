"""Only earlier results of this package are replaced, and only without other files in them."""

import json
import os
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

import gating
from gating.__main__ import main
from gating.serving.exporting import EXPORT
from gating.storage.results import COMPACT_MODEL, check_result
from tests.storage.test_folders import make_result, replacing
from tests.support.tiers import first_of

FOREIGN = ["notes.txt", ".git/HEAD", ".hidden", "blocks_of_mine.py", "sub/", "model.safetensors.bak", "export.json"]


def snapshot(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def put(folder: Path, name: str) -> None:
    place = folder / name
    (place if name.endswith("/") else place.parent).mkdir(parents=True, exist_ok=True)
    if not name.endswith("/"):
        place.write_text("precious")


@pytest.mark.parametrize("name", ["bert", "whole", "all-emptied", "vit"])
def test_a_compact_model_may_be_replaced_with_all_its_files(name, saved, tmp_path):
    shutil.copytree(saved[name].folder, tmp_path / "compact")
    check_result(tmp_path / "compact", kind=COMPACT_MODEL)
    with pytest.raises(FileExistsError, match="is not the folder of an earlier export"):
        check_result(tmp_path / "compact", kind=EXPORT)


@pytest.mark.parametrize("name", FOREIGN)
def test_an_earlier_result_with_another_file_in_it_is_not_replaced(name, folder, bert, tmp_path):
    put(folder, name)
    before = snapshot(tmp_path)
    with pytest.raises(
        FileExistsError, match=rf"it holds {name.partition('/')[0]}.*does not belong to the compact model"
    ):
        gating.save_compact(bert, folder, overwrite=True)
    assert snapshot(tmp_path) == before
    assert not hasattr(bert.config, "head_gating")


def fine_tune(folder: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)
    with torch.no_grad():
        model.classifier.bias += 1
    model.save_pretrained(folder)


def edit(name: str):
    def change(folder: Path) -> None:
        path = folder / name
        table = json.loads(path.read_text())
        table["mine"] = 1
        path.write_text(json.dumps(table))

    return change


def quantize(folder: Path) -> None:
    """Leave weights of another form under their names, as other tools do."""
    path = folder / "model.safetensors"
    save_file({name: tensor.half() for name, tensor in load_file(path).items()}, path)


def shard(folder: Path) -> None:
    model = gating.load_compact(folder)
    model.save_pretrained(folder, max_shard_size="20KB")


CHANGES = {
    "weights of further training": (fine_tune, r"(config\.json|model\.safetensors) in it has changed"),
    "another configuration": (edit("config.json"), r"config\.json in it has changed"),
    "another record": (edit("head_gating.json"), r"head_gating\.json in it has changed"),
    "another tokenizer": (edit("tokenizer_config.json"), r"tokenizer_config\.json in it has changed"),
    "another card": (lambda folder: (folder / "README.md").write_text("Mine."), r"README\.md in it has changed"),
    "weights of another type": (quantize, r"model\.safetensors in it has changed"),
    "several files of weights": (shard, r"in it has changed|it holds model-"),
    "a further tokenizer": (lambda folder: put(folder, "vocab.json"), r"it holds vocab\.json"),
    "no checksums": (lambda folder: (folder / "head_gating.json").unlink(), "is not the folder of an earlier"),
    "damaged checksums": (lambda folder: put(folder, "head_gating.json"), "is not the folder of an earlier"),
}


@pytest.mark.parametrize("stock", [True, False])
@pytest.mark.parametrize("name", first_of(CHANGES, every=4))
def test_a_result_that_was_changed_is_not_replaced(name, stock, bert, tokenizer, tmp_path):
    change, message = CHANGES[name]
    gating.prune_neurons(bert, {layer: [0] for layer in range(len(bert.bert.encoder.layer))}, group_size=8)
    folder = gating.save_compact(bert, tmp_path / "saved", tokenizer=tokenizer, stock=stock)
    gating.save_compact(bert, folder, tokenizer=tokenizer, stock=stock, overwrite=True)
    with warnings.catch_warnings(action="ignore"):
        change(folder)
    before = snapshot(tmp_path)
    with pytest.raises(FileExistsError, match=message):
        gating.save_compact(bert, folder, overwrite=True)
    assert snapshot(tmp_path) == before


def test_the_folder_of_a_model_stays_after_a_change_of_the_current_folder(bert, tmp_path, monkeypatch):
    gating.save_compact(bert, tmp_path / "here" / "saved")
    monkeypatch.chdir(tmp_path / "here")
    model = gating.load_compact("saved")
    monkeypatch.chdir(tmp_path)
    before = snapshot(tmp_path)
    with pytest.raises(FileExistsError, match="which the compact model is made from"):
        gating.save_compact(model, tmp_path / "here" / "saved", overwrite=True)
    assert snapshot(tmp_path) == before


def test_a_dense_model_with_the_tag_of_this_package_is_not_replaced(bert, tmp_path):
    bert.save_pretrained(tmp_path / "dense")
    put(tmp_path, "dense/README.md")
    (tmp_path / "dense" / "README.md").write_text("---\ntags:\n- head-gating\n---\nTrained with it.\n")
    before = snapshot(tmp_path)
    with pytest.raises(FileExistsError, match="is not the folder of an earlier compact model"):
        gating.save_compact(bert, tmp_path / "dense", overwrite=True)
    assert snapshot(tmp_path) == before


def test_an_unchanged_result_may_be_moved_copied_and_reformatted(bert, tmp_path):
    folder = gating.save_compact(bert, tmp_path / "saved")
    shutil.copytree(folder, tmp_path / "copy")
    folder.rename(tmp_path / "moved")
    # As git does on some systems.
    text = (tmp_path / "moved" / "config.json").read_text()
    (tmp_path / "moved" / "config.json").write_text(text.replace("\n", "\r\n"))
    for name in ("copy", "moved"):
        gating.load_compact(tmp_path / name)
        gating.save_compact(bert, tmp_path / name, overwrite=True)


CONFIGS = ["", "{", "[]", "{}", '{"head_gating": 1}', '{"head_gating": {}}', '{"model_type": "bert"}', None]


@pytest.mark.parametrize("config", CONFIGS)
def test_a_folder_of_other_origin_is_not_replaced(config, bert, tmp_path):
    target = tmp_path / "precious"
    put(target, "model.safetensors")
    if config is not None:
        (target / "config.json").write_text(config)
    before = snapshot(tmp_path)
    with pytest.raises(
        FileExistsError, match=r"precious is not the folder of an earlier compact model, so it is not replaced"
    ):
        gating.save_compact(bert, target, overwrite=True)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("make", [Path.touch, lambda path: path.symlink_to("nowhere")])
def test_a_file_or_a_link_to_nothing_is_not_replaced(make, tmp_path):
    make(tmp_path / "there")
    with (
        pytest.raises(FileExistsError, match="is not the folder of an earlier compact model"),
        replacing(tmp_path / "there"),
    ):
        pass
    assert os.listdir(tmp_path) == ["there"]


def test_links_in_a_result_do_not_count_as_its_files(folder):
    """Links in the hub's cache are shared by revisions."""
    shutil.move(folder / "model.safetensors", folder.parent / "blob")
    (folder / "model.safetensors").symlink_to(folder.parent / "blob")
    with pytest.raises(FileExistsError, match=r"model\.safetensors in it has changed"):
        check_result(folder, kind=COMPACT_MODEL)


def test_a_file_that_appears_during_writing_stays(tmp_path):
    make_result(tmp_path / "there")
    with pytest.raises(FileExistsError, match=r"it holds notes\.txt"), replacing(tmp_path / "there"):
        put(tmp_path / "there", "notes.txt")
    assert "notes.txt" in os.listdir(tmp_path / "there")
    assert os.listdir(tmp_path) == ["there"]


WAYS = ["{source}", "{source}/../compact", "{link}", "{source}/..", "{parent}", "{link}/.."]


@pytest.mark.parametrize("way", first_of(WAYS))
@pytest.mark.parametrize("loaded_from", ["source", "link", "relative"])
def test_the_source_folder_of_a_model_is_not_replaced(way, loaded_from, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path.parent)
    link = tmp_path / "link"
    link.symlink_to(folder)
    places = {"source": folder, "link": link, "relative": folder.relative_to(tmp_path.parent)}
    model = gating.load_compact(places[loaded_from])
    before = snapshot(tmp_path)
    target = way.format(source=folder, link=link, parent=tmp_path)
    with pytest.raises(FileExistsError, match="which the compact model is made from, so it is not replaced"):
        gating.save_compact(model, target, overwrite=True)
    assert snapshot(tmp_path) == before
    gating.save_compact(model, tmp_path / "compact" / "child", overwrite=True)


def test_a_dense_model_is_not_replaced_by_its_compact_one(bert, tmp_path):
    bert.save_pretrained(tmp_path / "dense")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "dense")
    gating.prune_heads(model, {0: [1]})
    with pytest.raises(FileExistsError, match="made from"):
        gating.save_compact(model, tmp_path / "dense", overwrite=True)
    gating.save_compact(model, tmp_path / "compact")
    gating.save_compact(model, tmp_path / "compact", overwrite=True)


def command(*arguments: str, monkeypatch) -> str | None:
    monkeypatch.setattr("sys.argv", ["gating", *arguments])
    try:
        main()
    except SystemExit as end:
        return str(end.code)
    return None


@pytest.mark.parametrize("target", ["precious", "run", "run/compact", "run/compact/../../run", "link"])
def test_the_command_to_export_replaces_nothing_but_exports(target, folder, tmp_path, monkeypatch):
    run = tmp_path / "run"
    run.mkdir()
    shutil.move(folder, run / "compact")
    put(run, "metrics.json")
    put(tmp_path, "precious/thesis.tex")
    (tmp_path / "link").symlink_to(run)
    before = snapshot(tmp_path)
    export = ("export", str(run / "compact"), "--format", "torch", "--overwrite", "--output")
    said = command(*export, str(tmp_path / target), monkeypatch=monkeypatch)
    assert said is not None
    assert "so it is not replaced. Choose another place." in said
    assert len(said.splitlines()) == 1
    assert snapshot(tmp_path) == before


@pytest.mark.families
@pytest.mark.filterwarnings("ignore:.*children_specs", "ignore:.*dynamic=True")
def test_an_export_replaces_an_earlier_one(folder, tmp_path, monkeypatch):
    export = ("export", str(folder), "--format", "torch", "--output", str(tmp_path / "export"))
    assert command(*export, monkeypatch=monkeypatch) is None
    check_result(tmp_path / "export", kind=EXPORT)
    put(tmp_path / "export", "notes.txt")
    assert "it holds notes.txt" in str(command(*export, "--overwrite", monkeypatch=monkeypatch))
    (tmp_path / "export" / "notes.txt").unlink()
    graph = tmp_path / "export" / "model.pt2"
    before = graph.stat().st_ino
    assert command(*export, "--overwrite", monkeypatch=monkeypatch) is None
    assert graph.stat().st_ino != before
    described = json.loads((tmp_path / "export" / "export.json").read_text())
    assert described["export_format"] == "dynamo"
    graph.write_text("of another model")
    assert "model.pt2 in it has changed" in str(command(*export, "--overwrite", monkeypatch=monkeypatch))
    # As transformers writes it for a user of its own.
    (tmp_path / "export" / "head_gating.json").unlink()
    assert "is not the folder of an earlier export" in str(command(*export, "--overwrite", monkeypatch=monkeypatch))
    assert graph.read_text() == "of another model"
