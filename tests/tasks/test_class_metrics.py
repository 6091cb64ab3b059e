"""Metrics of classes equal those of scikit-learn."""

import pytest
import torch

from gating.tasks.metrics.classes import class_metrics

sklearn = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")


@pytest.mark.parametrize("num_classes", [2, 4])
def test_metrics_are_those_of_scikit_learn_to_the_digit(num_classes):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(num_classes, (60,), generator=generator)
    logits = torch.randn(60, num_classes, generator=generator) + 2 * torch.nn.functional.one_hot(labels, num_classes)
    metrics = class_metrics(["accuracy", "f1", "matthews"], num_classes=num_classes)
    for start in range(0, 60, 25):
        metrics.update(logits[start : start + 25], labels[start : start + 25])
    found = metrics.compute()
    predicted = logits.argmax(1)
    average = "binary" if num_classes == 2 else "macro"
    for name, reference in {
        "accuracy": sklearn.accuracy_score(labels, predicted),
        "f1": sklearn.f1_score(labels, predicted, average=average),
        "matthews": sklearn.matthews_corrcoef(labels, predicted),
    }.items():
        assert 0.3 < reference < 0.99
        assert float(found[name]) == pytest.approx(reference, abs=1e-6)


def test_metric_that_does_not_exist_is_named():
    with pytest.raises(ValueError, match="'pearson'"):
        class_metrics(["pearson"], num_classes=2)
