"""Commands on the folder of a recipe: its base has the tokenizer."""

import json

import pytest
import torch
from transformers import BertForSequenceClassification

import gating
from gating.serving.exporting import load_model, load_processor
from tests.support.tiny_run import make_model_folder, write_table
from tests.test_main import run


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    place = tmp_path_factory.mktemp("recipe")
    model = BertForSequenceClassification.from_pretrained(make_model_folder(place / "base"))
    gating.prune_heads(model, {0: [1, 2], 1: [0, 1, 2, 3]})
    return gating.save_recipe(model, place / "recipe", base=place / "base")


def call(monkeypatch, capsys, *arguments):
    capsys.readouterr()
    run(monkeypatch, *arguments)
    return capsys.readouterr().out


def test_inspect_shows_the_units_and_the_base(recipe, monkeypatch, capsys):
    shown = call(monkeypatch, capsys, "inspect", recipe)
    assert "6 of 12 heads" in shown
    assert f"made from {recipe.parent / 'base'} by the recipe in {recipe}" in shown


@pytest.mark.runs
def test_evaluate_and_export_find_the_tokenizer_of_the_base(recipe, tmp_path, monkeypatch, capsys):
    test = write_table(tmp_path / "test.tsv", rows=16, seed=2)
    options = ("data=files", f"data.test={test}", "trainer.accelerator=cpu", "latency.max_seconds=1", "--json")
    numbers = json.loads(call(monkeypatch, capsys, "evaluate", recipe, *options))
    assert (numbers["num_examples"], numbers["num_heads"], numbers["num_heads_before"]) == (16, 6, 12)
    pytest.importorskip("onnx", reason="the package onnx is not installed")
    call(monkeypatch, capsys, "export", recipe, "--format", "onnx", "--output", tmp_path / "exported")
    assert (tmp_path / "exported" / "config.json").is_file()
    model, folder = load_model(recipe, format="onnx")
    assert not model.training
    assert load_processor(folder)("a word")["input_ids"]
    assert torch.equal(model.classifier.bias, gating.load_compact(recipe).classifier.bias)
