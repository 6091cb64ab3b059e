"""Exported compact models give the outputs of the model in other runtimes."""

import gc
from contextlib import suppress

import pytest
import torch
import torch._dynamo.config as dynamo_config
import torch.fx.config as fx_config
from transformers import BertForSequenceClassification

import gating
from gating.serving.graphs import check
from gating.serving.graphs import graph_export as export
from gating.serving.graphs.tracing import quick_tracing
from tests.support.family_models import FAMILIES
from tests.support.tiny_run import make_model_folder


@pytest.fixture
def compact_folder(tmp_path):
    model = BertForSequenceClassification.from_pretrained(make_model_folder(tmp_path / "model"))
    gating.prune_heads(model, {0: [1, 2], 1: [0, 1, 2, 3]})
    return gating.save_compact(model, tmp_path / "compact")


@pytest.mark.runs
def test_torch_export_gives_the_same_outputs(compact_folder, tmp_path):
    report = export.export_torch(compact_folder, tmp_path / "exported")
    assert report.max_difference <= 1e-6
    assert report.path == report.folder == tmp_path / "exported"
    assert report.sentences == (
        "Its inputs are input_ids [batch, length], attention_mask [batch, length], token_type_ids [batch, length]",
        f"Checked on {report.checked}: its outputs differ from the model's by {report.max_difference:.1e}",
    )
    assert (tmp_path / "exported" / "config.json").is_file()


@pytest.mark.runs
def test_onnx_runtime_gives_the_same_outputs(compact_folder, tmp_path):
    pytest.importorskip("onnxruntime", reason="the packages of the export are not installed")
    report = gating.export_onnx(compact_folder, tmp_path / "exported")
    assert report.max_difference <= 1e-5
    # No paths of this machine, as stack traces have.
    assert b"modeling_bert.py" not in (tmp_path / "exported" / "model.onnx").read_bytes()


def test_what_an_export_rejects_or_lacks_is_a_sentence(tmp_path):
    report = export.GraphReport(0.0, {}, "", ("input_ids of 1 x 1",), tmp_path, "torch", 1.0, ("token_type_ids",))
    assert report.sentences[2:] == (
        "It rejects input_ids of 1 x 1, which the model accepts",
        "The tokenizer or processor also makes token_type_ids, which the export does not accept: leave that out",
    )


def tracing_settings():
    return gc.isenabled(), fx_config.do_not_emit_stack_traces, dynamo_config.fake_tensor_cache_enabled


def test_tracing_restores_the_settings_of_torch_after_an_error():
    before = tracing_settings()
    with suppress(ZeroDivisionError), quick_tracing():
        assert tracing_settings() == (False, True, False)
        raise ZeroDivisionError
    assert tracing_settings() == before


@pytest.mark.families
def test_an_export_with_other_outputs_is_not_written(compact_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(check, "named_outputs", lambda outputs: {"logits": torch.full_like(outputs["logits"], 1e3)})
    with pytest.raises(RuntimeError, match="Nothing was written"):
        export.export_torch(compact_folder, tmp_path / "exported")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["compact", "model"]


def test_missing_packages_are_named(compact_folder, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"pip install 'head-gating\[export\]'"):
        gating.export_onnx(compact_folder, tmp_path / "exported")
    assert not (tmp_path / "exported").exists()


@pytest.mark.families
def test_models_without_neurons_in_some_layers_give_the_same_outputs_for_padded_batches(tmp_path):
    model = FAMILIES["gpt2"].build()
    gating.prune_neurons(model, {0: range(6), 1: [1, 3]}, group_size=8)
    report = export.export_torch(model, tmp_path / "exported")
    assert report.max_difference <= 1e-6
    assert report.refused == ()
    assert "padded left and right" in report.checked
