"""Labels of regression."""

import pytest
from datasets import Dataset, DatasetDict, Features, Value

from gating.tasks.regression import encode_numbers

HALVES = Features({"text": Value("string"), "label": Value("float16")})


def test_numbers_are_read_from_words_and_whole_numbers():
    table = Dataset.from_dict({"text": ["a", "b"], "label": ["1.5", "2"]})
    assert encode_numbers(DatasetDict(train=table))["train"]["label"][:] == [1.5, 2.0]


@pytest.mark.parametrize("label", [None, "high", float("nan")])
def test_labels_that_are_not_numbers_are_refused(label):
    table = Dataset.from_dict({"label": [1.0 if not isinstance(label, str) else "1", label]})
    with pytest.raises(ValueError, match="task=sequence_classification"):
        encode_numbers(DatasetDict(train=table))


def test_half_precision_is_read_too():
    table = Dataset.from_dict({"text": ["a"], "label": [0.5]}, features=HALVES)
    assert encode_numbers(DatasetDict(train=table))["train"]["label"][:] == [0.5]
