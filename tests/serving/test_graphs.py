"""Exported compact models give the outputs of the model in other runtimes."""

import pytest
import torch
from transformers import BertForSequenceClassification

import gating
from gating.serving.graphs import check, export
from tests.support.family_models import FAMILIES
from tests.support.tiny_run import make_model_folder

pytestmark = [
    # From tracing in torch and transformers.
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


@pytest.fixture
def compact_folder(tmp_path):
    model = BertForSequenceClassification.from_pretrained(make_model_folder(tmp_path / "model"))
    gating.prune_heads(model, {0: [1, 2], 1: [0, 1, 2, 3]})
    return gating.save_compact(model, tmp_path / "compact")


def test_torch_export_gives_the_same_outputs(compact_folder, tmp_path):
    report = export.export_runtime(compact_folder, tmp_path / "exported", format="torch")
    assert report.max_difference <= 1e-6
    assert report.megabytes > 0
    assert (tmp_path / "exported" / "config.json").is_file()


def test_onnx_runtime_gives_the_same_outputs(compact_folder, tmp_path):
    pytest.importorskip("onnxruntime", reason="the packages of the export are not installed")
    report = gating.export_onnx(compact_folder, tmp_path / "exported")
    assert report.max_difference <= 1e-5
    assert (tmp_path / "exported" / "model.onnx").is_file()


def test_an_export_with_other_outputs_is_not_written(compact_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(check, "_floating", lambda outputs: [torch.full_like(outputs["logits"], 1e3)])
    with pytest.raises(RuntimeError, match="Nothing was written"):
        export.export_runtime(compact_folder, tmp_path / "exported", format="torch")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["compact", "model"]


def test_unknown_formats_are_errors(compact_folder, tmp_path):
    with pytest.raises(ValueError, match="format='tflite' is not a format of exports: give one of onnx, torch"):
        export.export_runtime(compact_folder, tmp_path / "exported", format="tflite")
    assert not (tmp_path / "exported").exists()


def test_missing_packages_are_named(compact_folder, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"pip install 'head-gating\[export\]'"):
        export.export_runtime(compact_folder, tmp_path / "exported")
    assert not (tmp_path / "exported").exists()


def test_models_without_neurons_in_some_layers_give_the_same_outputs_for_padded_batches(tmp_path):
    model = FAMILIES["gpt2"].build()
    gating.prune_neurons(model, {0: range(6), 1: [1, 3]}, group_size=8)
    report = export.export_runtime(model, tmp_path / "exported", format="torch")
    assert report.max_difference <= 1e-6
    assert report.refused == ()
    assert "padded left and right" in report.checked
