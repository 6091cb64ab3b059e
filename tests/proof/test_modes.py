"""The mode of each module: what computes in evaluation mode leaves parts in training and frozen parts as they were."""

from contextlib import suppress

import pytest

import gating
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


@pytest.mark.parametrize("works", [time, measure, score, export, export_gguf])
@pytest.mark.filterwarnings("ignore:The timings are less exact")
def test_each_module_keeps_its_mode(bert, works, tmp_path):
    bert.train()
    frozen = bert.base_model.embeddings.eval()
    before = {name: module.training for name, module in bert.named_modules()}
    assert set(before.values()) == {True, False}
    works(bert, tmp_path)
    assert {name: module.training for name, module in bert.named_modules()} == before
    assert not frozen.training
