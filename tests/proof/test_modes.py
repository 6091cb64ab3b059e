"""The mode of each module: what computes in evaluation mode leaves parts in training and frozen parts as they were."""

from contextlib import suppress
from unittest.mock import patch

import pytest
import torch

import gating
from gating.compact import save
from gating.serving.exporting import exporting
from gating.tasks import SequenceClassification
from gating.training.evaluation import evaluate
from tests.support.metrics import class_metrics
from tests.support.timers import compare
from tests.support.tiny_models import batch_for


def time(model, folder):
    compare(model, model, batch_for(model), repeats=1)


def measure(model, folder):
    with suppress(gating.errors.InputError):  # The times of tiny models are noise.
        gating.budget_for_speedup(model, batch_for(model), speedup=1.001, max_seconds=1)


def score(model, folder):
    batch = {**batch_for(model), "labels": batch_for(model)["input_ids"][:, 0] * 0}
    metrics = class_metrics(["accuracy"], num_classes=model.config.num_labels)
    evaluate(model, [batch], task=SequenceClassification(), metrics=metrics)


def export(model, folder):
    pytest.importorskip("onnx", reason="the packages of the export are not installed")
    with suppress(KeyboardInterrupt), exporting(model, folder / "graph", format="onnx", overwrite=False) as opened:
        assert not any(module.training for module in opened[0].modules())
        raise KeyboardInterrupt


def export_gguf(model, folder):
    pytest.importorskip("gguf", reason="the package gguf is not installed")
    with pytest.raises(gating.errors.InputError):
        gating.export_compact(model, folder / "model.gguf", format="gguf")


def make_canary(model, folder):
    with patch.object(save, "canary_outputs", lambda model, _: model.eval() / 0):  # It fails.
        assert save._make_canary(model) is None


@pytest.mark.parametrize("works", [time, measure, score, export, export_gguf, make_canary])
def test_each_module_keeps_its_mode(bert, works, tmp_path):
    bert.train()
    frozen = bert.base_model.embeddings.eval()
    before = {name: module.training for name, module in bert.named_modules()}
    assert set(before.values()) == {True, False}
    works(bert, tmp_path)
    assert {name: module.training for name, module in bert.named_modules()} == before
    assert not frozen.training


def finalize(model, folder):
    gates, objective = gating.inject_gates(model), gating.Lagrangian(num_heads=5)
    gating.Search(gates, objective).update(1.0)
    assert not any(parameter.is_inference() for parameter in (*gates.parameters(), *objective.parameters()))
    gating.finalize(model, gates)


WITHOUT_GRADIENTS = {
    "finalize": finalize,
    "heads": lambda model, _: gating.prune_heads(model, {0: [1], 1: range(4)}) and None,
    "neurons": lambda model, _: gating.prune_neurons(model, {0: [1]}, group_size=8) and None,
    "load": lambda model, folder: gating.load_compact(gating.save_compact(model, folder / "saved")),
}


@pytest.mark.parametrize("name", WITHOUT_GRADIENTS)
def test_a_model_that_was_changed_in_inference_mode_can_be_trained(bert, name, tmp_path):
    with torch.inference_mode():
        model = WITHOUT_GRADIENTS[name](bert, tmp_path) or bert
    model.train()(**batch_for(model)).logits.sum().backward()
    assert not any(tensor.is_inference() for tensor in (*model.parameters(), *model.buffers()))
