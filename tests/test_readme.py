"""The README: its snippet runs, its commands compose, its links hold."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, BertForSequenceClassification, TrainingArguments

import gating
from tests.support.project import PROJECT
from tests.support.tiny_run import ROOT, checked_settings, make_model_folder

REPOSITORY = PROJECT["urls"]["Homepage"]
PLACES = (f"{REPOSITORY}/blob/main/", f"{REPOSITORY.replace('github.com', 'raw.githubusercontent.com')}/main/")
README = (ROOT / "README.md").read_text()


SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.S)


@pytest.mark.filterwarnings("ignore:The model has a loss of", "ignore:.*positions are few")
def test_one_call_prunes_with_texts_alone_without_training_and_with_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = make_model_folder(tmp_path / "model")
    without, trained = SNIPPETS[:2]
    saved = next(line for line in without.splitlines() if "save_compact" in line)
    snippet = trained.replace("speedup=2", "num_heads=5, args=args") + saved.replace('"compact"', '"trained"')
    names = {
        "model": BertForSequenceClassification.from_pretrained(folder),
        "tokenizer": AutoTokenizer.from_pretrained(folder),
        "texts": ["word1 word2 word3", "word4 word5"] * 8,
        "args": TrainingArguments(tmp_path / "out", max_steps=8, report_to="none", dataloader_pin_memory=False),
    }
    exec(without, names)
    assert gating.load_compact("compact").num_parameters() < names["model"].num_parameters()
    exec(snippet, names)
    assert sum(block.num_heads for block in gating.find_attention_blocks(gating.load_compact("trained"))) == 5


def test_a_loop_of_ones_own_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = make_model_folder(tmp_path / "model")
    model = BertForSequenceClassification.from_pretrained(folder).train()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    batch = {"input_ids": torch.randint(5, 45, (2, 6)), "labels": torch.tensor([0, 1])}
    # The model of the README has 72 heads, this one 12.
    snippet = next(one for one in SNIPPETS if "inject_gates" in one).replace("num_heads=18", "num_heads=5")
    exec(snippet, {"model": model, "tokenizer": tokenizer, "batches": [batch] * 4})
    assert sum(block.num_heads for block in gating.find_attention_blocks(gating.load_compact("compact"))) == 5


def test_one_line_removes_the_third_head_of_the_first_layer(tmp_path):
    names = {
        "gating": gating,
        "model": BertForSequenceClassification.from_pretrained(make_model_folder(tmp_path / "m")),
    }
    line = re.search(r"`(gating\.prune_heads\(.*?\))`", README)[1]
    assert eval(line, names).kept_heads["encoder.layer.0.attention.self"] == (0, 1, 3)


@pytest.mark.parametrize(
    "call", [c.replace("\\\n", " ") for c in re.findall(r"^python train\.py ((?:.*\\\n)*.*)$", README, re.M)]
)
def test_commands_compose(call):
    if call != "--help":
        checked_settings(shlex.split(call))


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", README, re.M):
        assert f"\n{target}: " in makefile


def test_readme_is_short_and_its_links_into_the_repository_hold():
    # Its words, not the cells of its table.
    assert len(re.sub(r"<!-- begin.*?<!-- end -->", "", README, flags=re.DOTALL).split()) < 900
    # Absolute, since PyPI shows the same file.
    paths = re.findall(rf"\]\((?:{'|'.join(PLACES)})(.*?)\)", README)
    assert len(paths) > 5
    for path in paths:
        assert Path(ROOT / path).is_file(), path
    for link in re.findall(r"\]\((.*?)\)", README):
        assert link.startswith("https://"), link
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", README):
        assert picture.startswith(PLACES[1]), picture


def test_core_imports_no_trainer_no_hydra_and_no_wandb():
    code = "import gating, sys; sys.exit(any(m in sys.modules for m in ('pytorch_lightning', 'hydra', 'wandb')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
