"""Labels of regression."""

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset

from gating.data.labels import read_numbers


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
