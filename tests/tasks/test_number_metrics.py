"""Metrics of numbers equal those of SciPy."""

import pytest
import torch

from tests.support.metrics import number_metrics


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
