import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from gating.lightning.tasks.regression import encode_numbers, number_metrics

HALVES = Features({"text": Value("string"), "label": Value("float16")})


@pytest.mark.filterwarnings("ignore:Metric .Spearman.* will save all targets and predictions in the buffer")
def test_correlations_are_those_of_scipy():
    stats = pytest.importorskip("scipy.stats", reason="scipy is not installed")
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(26, (90,), generator=generator) / 5
    predicted = labels + torch.randn(90, generator=generator)
    metrics = number_metrics(["pearson", "spearman", "mse", "mae"])
    for start in range(0, 90, 32):
        metrics.update(predicted[start : start + 32], labels[start : start + 32])
    found = metrics.compute()
    # Single precision, in three batches.
    assert float(found["pearson"]) == pytest.approx(stats.pearsonr(predicted, labels)[0], abs=1e-6)
    assert float(found["spearman"]) == pytest.approx(stats.spearmanr(predicted, labels)[0], abs=1e-6)
    assert float(found["mse"]) == pytest.approx(float(((predicted - labels) ** 2).mean()), rel=1e-6)
    assert float(found["mae"]) == pytest.approx(float((predicted - labels).abs().mean()), rel=1e-6)


def test_metric_of_classes_is_refused():
    with pytest.raises(ValueError, match="'accuracy'"):
        number_metrics(["accuracy"])


def test_numbers_are_read_from_words_and_whole_numbers():
    table = Dataset.from_dict({"text": ["a", "b"], "label": ["1.5", "2"]})
    assert encode_numbers(DatasetDict(train=table))["train"]["label"][:] == [1.5, 2.0]


@pytest.mark.parametrize("label", [None, "high", float("nan")])
def test_label_that_is_no_number_is_named(label):
    table = Dataset.from_dict({"label": [1.0 if not isinstance(label, str) else "1", label]})
    with pytest.raises(ValueError, match="row 2, which is no number.*task=sequence_classification"):
        encode_numbers(DatasetDict(train=table))


def test_names_of_classes_are_no_numbers():
    table = Dataset.from_dict({"label": [0]}, features=Features({"label": ClassLabel(names=["bad", "good"])}))
    with pytest.raises(ValueError, match="'bad' in row 1"):
        encode_numbers(DatasetDict(train=table))


def test_half_precision_is_read_too():
    table = Dataset.from_dict({"text": ["a"], "label": [0.5]}, features=HALVES)
    assert encode_numbers(DatasetDict(train=table))["train"]["label"][:] == [0.5]
