"""Labels of regression, and metrics of classes and numbers: on labels of one class, and equal to those of SciPy."""

import math

import numpy as np
import pyarrow as pa
import pytest
import torch
from datasets import Dataset

from gating.data.labels import read_numbers
from tests.support.metrics import class_metrics, number_metrics


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
    sklearn = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    logits, labels = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 2
    metrics = class_metrics(["auroc"], num_classes=3)
    metrics.update(logits, labels)
    shares = logits.softmax(1)
    expected = [sklearn.roc_auc_score(labels == number, shares[:, number]) for number in (0, 1)]
    assert float(metrics.compute()["auroc"]) == pytest.approx(sum(expected) / 2, abs=1e-6)


def test_correlations_are_those_of_scipy():
    stats = pytest.importorskip("scipy.stats", reason="scipy is not installed")
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(26, (90,), generator=generator) / 5
    predicted = labels + torch.randn(90, generator=generator)
    metrics = number_metrics(["pearson", "spearman", "mse", "mae"])
    for start in range(0, 90, 32):
        metrics.update(predicted[start : start + 32], labels[start : start + 32])
    found = metrics.compute()
    assert float(found["pearson"]) == pytest.approx(stats.pearsonr(predicted, labels)[0], abs=1e-6)
    assert float(found["spearman"]) == pytest.approx(stats.spearmanr(predicted, labels)[0], abs=1e-6)
    assert float(found["mse"]) == pytest.approx(float(((predicted - labels) ** 2).mean()), rel=1e-6)
    assert float(found["mae"]) == pytest.approx(float((predicted - labels).abs().mean()), rel=1e-6)


@pytest.mark.filterwarnings("ignore:The variance of predictions")
def test_precision_is_kept_if_predictions_hardly_differ():
    stats = pytest.importorskip("scipy.stats", reason="scipy is not installed")
    labels = torch.rand(24, generator=torch.Generator().manual_seed(0)).double()
    predicted = 1.4 + 1e-4 * labels**3
    metrics = number_metrics(["pearson"])
    metrics.update(predicted[:12], labels[:12])
    metrics.update(predicted[12:], labels[12:])
    expected = stats.pearsonr(predicted, labels)[0]
    assert float(metrics.compute()["pearson"]) == pytest.approx(expected, abs=1e-7)


@pytest.mark.filterwarnings("ignore:The variance of predictions")
def test_no_correlation_of_equal_numbers_is_told():
    numbers, same = torch.arange(4.0).double(), torch.ones(4).double()
    metrics = number_metrics(["pearson", "spearman", "r2"])
    for pair in ((numbers, same), (same, numbers)):
        metrics.reset()
        metrics.update(*pair)
        found = metrics.compute()
        assert found["pearson"].isnan()
        assert found["spearman"] == 0
        assert found["r2"] <= 0


def test_numbers_are_read_from_words_and_whole_numbers():
    assert read_numbers(Dataset.from_dict({"label": ["1.5", "2"]}), "label", "train") == [1.5, 2.0]


@pytest.mark.parametrize("label", [None, "high", float("nan")])
def test_labels_that_are_not_numbers_are_refused(label):
    table = Dataset.from_dict({"label": [1.0 if not isinstance(label, str) else "1", label]})
    with pytest.raises(ValueError, match="task=sequence_classification"):
        read_numbers(table, "label", "train")


def test_half_precision_is_read_too():
    table = Dataset(pa.table({"label": np.array([0.5], np.float16)}))
    assert read_numbers(table, "label", "train") == [0.5]
