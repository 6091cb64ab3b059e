"""Compact models on the hub: uploads and downloads through a local server, and through the hub's cache alone."""

import json
import logging
import os
import runpy
import shutil
import sys
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForSequenceClassification

import gating
from gating.commands import export
from tests.support.fake_hub import TOKEN, FakeHub, Repository, fake_hub
from tests.support.tiny_models import assert_same_state, batch_for, logits_of, state_of
from tests.support.tiny_run import ROOT
from tests.test_main import run

# huggingface_hub's own use of its HTTP library.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

NAME = "me/compact"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Return a server, with an empty cache and an empty working folder beside."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with fake_hub(monkeypatch) as server:
        yield server


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def put(hub: FakeHub, folder: Path, **options: bool) -> Repository:
    """Place a folder on the server without an upload."""
    hub.models[NAME] = Repository(**options)
    hub.models[NAME].commit(contents(folder))
    return hub.models[NAME]


def test_a_model_comes_back_as_it_was_saved(hub, pruned, tokenizer, tmp_path):
    folder = gating.save_compact(pruned, tmp_path / "saved", tokenizer=tokenizer, repo_id=NAME, token=TOKEN)
    assert hub.models[NAME].files() == contents(folder)
    loaded = gating.load_compact(NAME)
    batch = batch_for(pruned)
    assert torch.equal(logits_of(loaded, batch), logits_of(pruned, batch))
    (snapshot,) = (tmp_path / "cache").glob("models--*/snapshots/*")
    assert (snapshot / "tokenizer.json").is_file()
    assert not list(snapshot.glob("*.py"))


@pytest.mark.families
def test_revisions_are_branches_tags_and_commits(hub, pruned, tmp_path):
    gating.save_compact(pruned, tmp_path / "saved", repo_id=NAME, token=TOKEN)
    model = hub.models[NAME]
    first = model.refs["main"]
    model.refs["v1"] = first
    gating.prune_heads(pruned, {2: [0]})
    gating.save_compact(pruned, tmp_path / "saved", overwrite=True, repo_id=NAME, token=TOKEN)
    heads = {revision: gating.load_compact(NAME, revision=revision) for revision in (None, "v1", first)}
    counts = {revision: model.config.head_gating["units"] for revision, model in heads.items()}
    assert counts["v1"] == counts[first] != counts[None]


def test_an_upload_replaces_all_weights_and_keeps_other_files(hub, pruned, tmp_path):
    hub.models[NAME] = Repository()
    hub.models[NAME].commit({"model-00001-of-00002.safetensors": b"x", "heads.png": b"y"})
    folder = gating.save_compact(pruned, tmp_path / "saved", repo_id=NAME, token=TOKEN)
    assert hub.models[NAME].files() == {**contents(folder), "heads.png": b"y"}


def test_a_folder_of_that_name_wins(hub, folder, tmp_path):
    put(hub, folder)
    shutil.copytree(folder, tmp_path / "here" / NAME)
    gating.load_compact(NAME)
    assert not hub.requests


@pytest.mark.parametrize("name", ["./me/compact", "/me/compact", "../me", "me", "a/b/c", "me/na me", Path(NAME), ""])
def test_paths_and_invalid_names_are_not_looked_up(hub, name):
    with pytest.raises((FileNotFoundError, ValueError), match="There is no model in"):
        gating.load_compact(name)
    assert not hub.requests


def refused(error: type[Exception], message: str, **options) -> None:
    with pytest.raises(error, match=message) as caught:
        gating.load_compact(NAME, **options)
    assert str(caught.value).startswith(f"There is no compact model in {NAME}: ")
    assert "\n" not in str(caught.value)


def test_a_missing_model_and_a_missing_revision_are_named(hub, folder):
    refused(FileNotFoundError, "me/compact cannot be downloaded from .*Repository Not Found")
    put(hub, folder)
    refused(FileNotFoundError, "revision v9.*Revision Not Found", revision="v9")


@pytest.mark.parametrize("fault", ["gated", "refused", "failing", "unreachable"])
def test_a_hub_that_gives_nothing_is_a_connection_error(hub, folder, monkeypatch, fault):
    put(hub, folder, is_gated=fault == "gated")
    hub.failing_reads = {"refused": 403, "failing": 503}.get(fault)
    if fault == "unreachable":
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    said = {"gated": "gated repo", "refused": "403", "failing": "503", "unreachable": "refused"}
    refused(ConnectionError, f"me/compact cannot be downloaded from http://127.*{said[fault]}")


def test_the_cache_serves_a_model_offline(hub, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    refused(ConnectionError, "HF_HUB_OFFLINE is set, and me/compact is not in the cache")
    place = tmp_path / "cache" / "models--me--compact"
    # As huggingface_hub lays it out: files beside the snapshots, which are links.
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(COMMIT)
    (place / "snapshots" / COMMIT).mkdir(parents=True)
    (place / "blobs").mkdir()
    for path in folder.glob("*.*"):
        shutil.copy(path, place / "blobs" / path.name)
        (place / "snapshots" / COMMIT / path.name).symlink_to(f"../../blobs/{path.name}")
    model = gating.load_compact(folder)
    for options in ({}, {"revision": COMMIT}):
        batch = batch_for(model)
        assert torch.equal(logits_of(gating.load_compact(NAME, **options), batch), logits_of(model, batch))
    refused(ConnectionError, r"me/compact \(revision v1\) is not in the cache", revision="v1")
    assert not hub.requests


def test_pickles_and_code_are_not_downloaded(hub, folder, tmp_path):
    model = put(hub, folder)
    model.commit({"pytorch_model.bin": b"not a pickle", "evil.py": b"1 / 0", "evil.safetensors": b""})
    gating.load_compact(NAME)
    assert not any("evil" in request or ".bin" in request or ".py" in request for request in hub.requests)
    model.commit({"model.safetensors": None})
    with pytest.raises(FileNotFoundError, match="There are no weights in"):
        gating.load_compact(NAME)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"repo_id": "me/na me", "token": TOKEN}, "repo_id='me/na me' is not a valid name on the hub"),
        ({"repo_id": "a/b/c", "token": TOKEN}, "repo_id='a/b/c' is not a valid name"),
        ({"repo_id": NAME}, "An upload to me/compact needs a token: give token=..., set HF_TOKEN, or log in"),
        ({"repo_id": NAME, "token": False}, "needs a token"),
    ],
)
def test_names_and_tokens_are_checked_before_anything_is_written(hub, pruned, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        gating.save_compact(pruned, tmp_path / "saved", **options)
    assert not (tmp_path / "saved").exists()
    assert not hub.requests


@pytest.mark.parametrize("token", [TOKEN, "hf_wrong"])
def test_a_failed_upload_leaves_the_folder_and_names_the_command(hub, pruned, tmp_path, token):
    hub.failing = 403 if token == TOKEN else None
    private = token == TOKEN
    command = rf"hf upload me/compact {tmp_path}/saved{' --private' * private}$"
    with pytest.raises(ConnectionError, match=rf"was not uploaded to me/compact .*40[13] .*{command}"):
        gating.save_compact(pruned, tmp_path / "saved", repo_id=NAME, token=token, private=private)
    gating.load_compact(tmp_path / "saved")


def test_push_to_hub_writes_the_same_files_and_card(hub, pruned, tmp_path):
    folder = gating.save_compact(pruned, tmp_path / "saved")
    pruned.push_to_hub(NAME, token=TOKEN)
    pushed, saved = dict(hub.models[NAME].files()), contents(folder)
    card = ModelCard(pushed.pop("README.md").decode())
    for name in ("README.md", "head_gating.json"):
        saved.pop(name)
    described, expected = (json.loads(files.pop("config.json")) for files in (pushed, saved))
    assert pushed == saved
    # Outputs are computed by save_compact alone.
    assert expected["head_gating"].pop("canary")
    for config in (described, expected):
        config["head_gating"]["sha256"].pop("config.json")
    assert described == expected
    assert "head-gating" in card.data.tags
    assert "| encoder.layer.0.attention.self | 0, 2, 3 | 3 of 4 |" in card.text.replace("bert.", "")
    assert f'from_pretrained("{NAME}", trust_remote_code=True)' in card.text
    batch = batch_for(pruned)
    assert torch.equal(logits_of(gating.load_compact(NAME), batch), logits_of(pruned, batch))


def test_push_to_hub_keeps_a_card_that_is_there(hub, pruned):
    hub.models[NAME] = Repository()
    hub.models[NAME].commit({"README.md": b"---\nlicense: mit\n---\n# My model\n"})
    pruned.push_to_hub(NAME, token=TOKEN)
    assert b"# My model" in hub.models[NAME].files()["README.md"]
    gating.load_compact(NAME)


def test_inspect_and_export_take_names_on_the_hub(hub, folder, monkeypatch, capsys):
    model = put(hub, folder)
    model.refs["v1"] = model.refs["main"]
    run(monkeypatch, "inspect", NAME, "--revision", "v1")
    assert f"MB of weights in {NAME}" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, "export", "me/other", "--format", "onnx")
    assert str(stop.value).startswith("error: There is no compact model in me/other: ")


def test_an_export_of_a_model_on_the_hub_lies_in_the_current_folder(hub, folder, monkeypatch):
    put(hub, folder)
    asked = []
    monkeypatch.setattr(export, "export_compact", lambda *places, **_: asked.append(places) or sys.exit())
    for name in (NAME, str(folder)):
        with pytest.raises(SystemExit):
            run(monkeypatch, "export", name)
    assert [target for _, target in asked] == ["compact-onnx", f"{folder}-onnx"]
    assert [(source / "config.json").is_file() for source, _ in asked] == [True, True]


@pytest.mark.parametrize("revision", [None, "main"])
def test_transformers_alone_loads_from_the_hub(hub, saved, caplog, monkeypatch, revision):
    one = saved["bert"]
    put(hub, one.folder)
    # As on a machine that has not loaded it before.
    shutil.rmtree(Path(os.environ["HF_MODULES_CACHE"]) / "transformers_modules" / "me", ignore_errors=True)
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    with caplog.at_level(logging.WARNING, logger="transformers"):
        model = AutoModelForSequenceClassification.from_pretrained(NAME, revision=revision, trust_remote_code=True)
    # With a revision, which is that of the code, too, transformers does not warn of each file of code.
    assert ("malicious" in caplog.text) == (revision is None)
    assert type(model).__module__.startswith("transformers_modules.")
    assert torch.equal(logits_of(model, one.batch), one.logits)


@pytest.mark.parametrize("name", [None, NAME])
def test_the_example_runs(hub, monkeypatch, capsys, name):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(sys, "argv", ["hub.py", *(["--repo", name] if name else [])])
    runpy.run_path(str(ROOT / "examples" / "hub.py"), run_name="__main__")
    assert "the same outputs as before" in capsys.readouterr().out
    assert list(hub.models) == ([name] if name else [])


def test_a_recipe_is_uploaded_with_the_commit_of_its_base(hub, bert, tmp_path):
    dense = tmp_path / "dense"
    bert.save_pretrained(dense)
    hub.models["them/base"] = Repository()
    first = hub.models["them/base"].commit(contents(dense))
    model = AutoModelForSequenceClassification.from_pretrained(dense).eval()
    gating.prune_heads(model, {0: [1], 1: range(4)})
    folder = gating.save_recipe(model, tmp_path / "recipe", base="them/base", repo_id=NAME, token=TOKEN)
    assert hub.models[NAME].files() == contents(folder)
    assert json.loads((folder / "recipe.json").read_text())["revision"] == first
    assert ModelCard.load(folder / "README.md").data.base_model == "them/base"
    # The base goes on; the recipe stays with its commit.
    with torch.no_grad():
        bert.classifier.bias += 1
    bert.save_pretrained(tmp_path / "later")
    hub.models["them/base"].commit(contents(tmp_path / "later"))
    assert_same_state(gating.load_compact(NAME), state_of(model))
    # A compact model takes its place, and it that of the model.
    gating.save_compact(model, tmp_path / "compact", repo_id=NAME, token=TOKEN)
    assert "recipe.json" not in hub.models[NAME].files()
    gating.save_recipe(model, folder, base="them/base", revision=first, repo_id=NAME, token=TOKEN, overwrite=True)
    assert "model.safetensors" not in hub.models[NAME].files()
    assert_same_state(gating.load_compact(NAME), state_of(model))
