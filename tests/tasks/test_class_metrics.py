"""Metrics of classes on labels or predictions of one class."""

import math

import pytest
import torch

from tests.support.metrics import class_metrics

sklearn = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("num_classes", [2, 3])
def test_metrics_without_a_meaning_on_labels_of_one_class_are_not_finite(num_classes):
    metrics = class_metrics(["auroc", "matthews", "accuracy"], num_classes=num_classes)
    if num_classes == 2:
        metrics.add_metrics(dict(class_metrics(["f1", "precision", "recall"], num_classes=2)))
    metrics.update(torch.eye(num_classes)[[0, 0, 1]], torch.zeros(3, dtype=torch.long))
    found = {name: float(value) for name, value in metrics.compute().items()}
    assert found.pop("accuracy") == pytest.approx(2 / 3)
    assert all(map(math.isnan, found.values())), found


def test_matthews_of_equal_predictions_is_that_of_scikit_learn():
    metrics = class_metrics(["matthews"], num_classes=2)
    metrics.update(torch.tensor([[1.0, 0.0]] * 6), torch.tensor([0, 0, 0, 0, 0, 1]))
    assert float(metrics.compute()["matthews"]) == 0


@pytest.mark.filterwarnings("error")
def test_auroc_is_the_mean_of_the_classes_in_the_labels():
    logits, labels = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 2
    metrics = class_metrics(["auroc"], num_classes=3)
    metrics.update(logits, labels)
    shares = logits.softmax(1)
    expected = [sklearn.roc_auc_score(labels == number, shares[:, number]) for number in (0, 1)]
    assert float(metrics.compute()["auroc"]) == pytest.approx(sum(expected) / 2, abs=1e-6)
