"""Model cards of compact models."""

import json
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import ModelCard, metadata_load
from transformers import (
    AutoModelForSequenceClassification,
)

import gating
from gating.report.card import write_card
from gating.report.metadata import EvaluatedData
from gating.report.rows import CompactReport, Row, heads_per_layer
from tests.support.fake_hub import Repository, fake_hub

REPORT = CompactReport(
    rows=[Row("attention heads", "12", "7", "0.58"), Row("latency (ms)", "9.1", "7.0", "1.30x as fast")],
    metrics=[("compact", "91.00 %", "90.50 %")],
    metric_name="accuracy",
    notes=["Latency: one thread."],
)


SST2 = CompactReport(
    data=EvaluatedData("GLUE sst2", "nyu-mll/glue", "sst2", {"validation": "train", "test": "validation"}),
    scores=[("validation", "accuracy", 0.90000001), ("test", "accuracy", 0.91), ("test", "matthews", 0.5)],
)


def card_of(model, folder, report=None):
    write_card(folder / "README.md", model, report)
    return (folder / "README.md").read_text(encoding="utf-8")


def test_heads_per_layer_are_those_of_the_record(pruned):
    assert heads_per_layer(pruned) == [
        ("encoder.layer.0.attention.self", (0, 2, 3), 4),
        ("encoder.layer.1.attention.self", (), 4),
        ("encoder.layer.2.attention.self", (0, 1, 2, 3), 4),
    ]


def test_the_card_has_the_measured_tables(pruned, tmp_path):
    lines = card_of(pruned, tmp_path, REPORT).splitlines()
    at = lines.index("|  | before | after | ratio |")
    assert lines[at + 1 : at + 4] == [
        "| --- | --- | --- | --- |",
        "| attention heads | 12 | 7 | 0.58 |",
        "| latency (ms) | 9.1 | 7.0 | 1.30x as fast |",
    ]
    assert "| stage | validation accuracy | test accuracy |" in lines
    assert "| compact | 91.00 % | 90.50 % |" in lines
    assert "Latency: one thread." in lines


def metadata_of(model, folder, report=None, **options):
    write_card(folder / "README.md", model, report, **options)
    return ModelCard.load(folder / "README.md").data


def test_the_metadata_has_the_results_of_the_run(pruned, tmp_path):
    data = metadata_of(pruned, tmp_path, SST2, repo_id="me/small")
    assert (data.model_name, data.datasets) == ("small", ["nyu-mll/glue"])
    assert data.metrics == ["accuracy", "matthews_correlation"]
    assert [
        (r.task_type, r.dataset_name, r.dataset_type, r.dataset_config, r.dataset_split, r.metric_type, r.metric_value)
        for r in data.eval_results
    ] == [
        ("text-classification", "GLUE sst2", "nyu-mll/glue", "sst2", "train", "accuracy", 0.9),
        ("text-classification", "GLUE sst2", "nyu-mll/glue", "sst2", "validation", "accuracy", 0.91),
        ("text-classification", "GLUE sst2", "nyu-mll/glue", "sst2", "validation", "matthews_correlation", 0.5),
    ]


def test_local_data_is_named_but_no_data_set_of_the_hub(pruned, tmp_path):
    report = CompactReport(data=EvaluatedData("reviews"), scores=[("test", "f1", 0.5)])
    data = metadata_of(pruned, tmp_path, report)
    assert data.datasets is None
    assert [(r.dataset_name, r.dataset_split) for r in data.eval_results] == [("reviews", "test")]


@pytest.mark.skipif(huggingface_hub.__version__ < "2", reason="asks huggingface.co itself")
@pytest.mark.parametrize("report", [None, REPORT, SST2, CompactReport(scores=[("test", "f1", 0.5)])])
def test_the_metadata_passes_the_checks_of_the_hub(pruned, tmp_path, monkeypatch, report):
    write_card(tmp_path / "README.md", pruned, report)
    card = ModelCard.load(tmp_path / "README.md")
    with fake_hub(monkeypatch) as hub:
        card.validate()
        assert hub.requests == ["POST /api/validate-yaml"]
    again = ModelCard(str(ModelCard.load(tmp_path / "README.md")))
    assert again.data.to_dict() == metadata_load(tmp_path / "README.md")


@pytest.mark.parametrize(
    ("family", "task"),
    [
        ("bert", "text-classification"),
        ("distilbert", "text-classification"),
        ("vit", "image-classification"),
    ],
)
def test_the_task_is_that_of_the_model(make_model, tmp_path, family, task):
    model = make_model(family)
    gating.prune_heads(model, {0: [1]})
    assert metadata_of(model, tmp_path).pipeline_tag == task
    base = getattr(model, model.base_model_prefix)
    gating.prune_heads(base, {1: [0]})
    assert metadata_of(base, tmp_path).pipeline_tag == ("feature-extraction" if family != "vit" else None)


def loaded(name: str | Path):
    model = AutoModelForSequenceClassification.from_pretrained(name)
    gating.prune_heads(model, {0: [1]})
    return model


@pytest.fixture
def dense(bert, tmp_path) -> Path:
    bert.save_pretrained(tmp_path / "dense")
    return tmp_path / "dense"


def test_a_model_of_the_hub_is_the_base_model(dense, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with fake_hub(monkeypatch) as hub:
        hub.models["org/bert"] = Repository()
        files = {path.name: path.read_bytes() for path in dense.iterdir()}
        hub.models["org/bert"].commit({**files, "README.md": b"---\nlicense: mit\n---\n"})
        model = loaded("org/bert")
        number = len(hub.requests)
        data = metadata_of(model, tmp_path)
        # The license is looked up on the hub for an upload alone.
        assert (data.base_model, data.license, len(hub.requests)) == ("org/bert", None, number)
        data = metadata_of(model, tmp_path, repo_id="me/small")
        assert (data.base_model, data.license) == ("org/bert", "mit")
    assert metadata_of(model, tmp_path).license == "mit"
    (snapshot,) = (tmp_path / "cache").glob("models--org--bert/snapshots/*")
    data = metadata_of(loaded(snapshot), tmp_path)
    assert (data.base_model, data.license) == ("org/bert", "mit")


def test_a_folder_is_no_base_model_but_its_card_may_name_one(dense, tmp_path, monkeypatch):
    assert metadata_of(loaded(dense), tmp_path).base_model is None
    (dense / "README.md").write_text("---\nbase_model: org/bert\nlicense: other\nlicense_name: own\n---\n")
    data = metadata_of(loaded(dense), tmp_path)
    assert (data.base_model, data.license, data.license_name) == ("org/bert", "other", "own")
    hostile = {"base_model": ["x", {"y": 1}], "license": "---\n- a", "license_name": {"b": 2}, "license_link": 3}
    (dense / "README.md").write_text(f"---\n{json.dumps(hostile)}\n---\n")
    data = metadata_of(loaded(dense), tmp_path)
    assert (data.base_model, data.license, data.license_name, data.license_link) == (None, None, None, None)
    (dense / "README.md").write_text("---\nbroken: [\n---\n")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    model = loaded(dense.rename("models/bert"))
    (tmp_path / "models").rename(tmp_path / "moved")
    assert metadata_of(model, tmp_path).base_model is None
