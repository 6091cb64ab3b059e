import ast
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
import transformers
from conftest import SAVED, TEXTS
from safetensors.torch import load_file, save_file
from tiny_models import FAMILIES, NUM_HEADS, assert_same_state, batch_for, logits_of, state_of

import gating
from gating.card import CompactReport, Row
from gating.export import load_compact, save_compact

SECOND = "encoder.layer.1.attention.self"


@pytest.fixture
def pruned(bert):
    gating.prune_heads(bert, {0: [1], 1: range(NUM_HEADS)})
    return bert


@pytest.fixture
def folder(saved, tmp_path):
    """A saved BERT that a test may damage."""
    return Path(shutil.copytree(saved["bert"].folder, tmp_path / "compact"))


def edit_config(folder, change):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def edit_weights(folder, change):
    path = folder / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


def test_the_folder_holds_everything_and_no_pickle(saved):
    names = {path.name for path in saved["bert"].folder.rglob("*")}
    assert {"config.json", "model.safetensors", "README.md", "tokenizer.json", "compact.py", "removal.py"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pth", ".pkl", ".ckpt", ".pyc"))]


def test_the_files_that_travel_import_nothing_but_torch_and_transformers(saved):
    for path in saved["bert"].folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names.append(node.module)
            roots = {name.split(".")[0] for name in names}
            assert roots - sys.stdlib_module_names <= {"torch", "transformers"}, path.name


def test_the_configuration_has_the_record_and_the_original_architecture(saved):
    config = json.loads((saved["bert"].folder / "config.json").read_text())
    assert config["num_attention_heads"] == NUM_HEADS
    assert config["architectures"] == ["BertForSequenceClassification"]
    assert config["head_gating"]["format"] == 1
    assert [block["kept_heads"] for block in config["head_gating"]["blocks"].values()] == [[0, 2, 3], [], [0, 1, 2, 3]]


def test_the_card_has_the_measured_table(pruned, tmp_path):
    report = CompactReport(rows=[Row("attention heads", "12", "7", "0.58")])
    save_compact(pruned, tmp_path / "compact", report=report)
    assert "| attention heads | 12 | 7 | 0.58 |" in (tmp_path / "compact" / "README.md").read_text()


def test_the_path_comes_back_and_may_be_a_text_or_deep(pruned, tmp_path):
    assert save_compact(pruned, str(tmp_path / "far" / "down")) == tmp_path / "far" / "down"


def test_nothing_is_left_beside_the_folder(pruned, tmp_path):
    save_compact(pruned, tmp_path / "compact")
    assert os.listdir(tmp_path) == ["compact"]


def test_the_folder_can_be_read_by_others(pruned, tmp_path):
    save_compact(pruned, tmp_path / "compact")
    assert (tmp_path / "compact").stat().st_mode & 0o055 == 0o055 & ~current_umask()


def current_umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_saving_changes_no_weight(pruned, tmp_path):
    state = state_of(pruned)
    save_compact(pruned, tmp_path / "compact")
    assert_same_state(pruned, state)


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
    base = type(one.model).__mro__[1]
    with pytest.raises(RuntimeError, match=r"size mismatch|ignore_mismatched_sizes"):
        base.from_pretrained(one.folder)


def test_a_model_that_lost_nothing_loads_rightly_without_remote_code(saved):
    one = saved["whole"]
    model = transformers.AutoModelForSequenceClassification.from_pretrained(one.folder)
    assert torch.equal(logits_of(model, one.batch), one.logits)


def test_gates_are_not_saved(bert, tmp_path):
    gating.inject_gates(bert)
    with pytest.raises(ValueError, match=r"still has gates: call gating\.finalize"):
        save_compact(bert, tmp_path / "compact")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("what", ["folder", "file"])
def test_what_exists_is_not_overwritten_unasked(pruned, tmp_path, what):
    target = tmp_path / "compact"
    if what == "folder":
        target.mkdir()
        (target / "precious").write_text("data")
    else:
        target.write_text("data")
    with pytest.raises(FileExistsError, match=r"compact exists already.*overwrite=True"):
        save_compact(pruned, target)
    assert os.listdir(tmp_path) == ["compact"]
    assert (target / "precious" if what == "folder" else target).read_text() == "data"


def test_an_empty_folder_is_used(pruned, tmp_path):
    (tmp_path / "compact").mkdir()
    save_compact(pruned, tmp_path / "compact")
    assert load_compact(tmp_path / "compact")


def test_overwriting_replaces_the_whole_folder(pruned, folder, tmp_path):
    (folder / "left over").write_text("")
    save_compact(pruned, folder, overwrite=True)
    assert not (folder / "left over").exists()
    assert os.listdir(tmp_path) == ["compact"]


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
    def fail(*_):
        raise ValueError("no card")

    monkeypatch.setattr("gating.export.write_card", fail)


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


def test_a_crash_before_the_first_save_leaves_no_new_parent_folders(pruned, tmp_path, monkeypatch):
    crash_in_card(monkeypatch, pruned)
    with pytest.raises(ValueError, match="no card"):
        save_compact(pruned, tmp_path / "far" / "compact")
    assert not list(tmp_path.rglob(".compact-*"))
    assert not (tmp_path / "far" / "compact").exists()


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
    with pytest.raises(ValueError, match="damaged or mixed from two models"):
        load_compact(folder)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_dense_folder_of_transformers_loads_too(make_model, tmp_path, family):
    model = make_model(family)
    model.save_pretrained(tmp_path)
    batch = batch_for(model)
    assert torch.equal(logits_of(load_compact(tmp_path), batch), logits_of(model, batch))


def test_a_model_that_is_not_of_transformers_is_refused(tmp_path):
    with pytest.raises((TypeError, ValueError), match="Linear"):
        save_compact(torch.nn.Linear(2, 2), tmp_path / "compact")
    assert os.listdir(tmp_path) == []
