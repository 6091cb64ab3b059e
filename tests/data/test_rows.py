"""Warnings of examples and files in more than one split."""

import datetime

import numpy as np
import PIL.Image
import pytest
from datasets import Dataset, DatasetDict

from gating.data.columns import take_columns, warn_of_overlap
from gating.tasks.embedding_examples import read_examples


def splits(**texts: list) -> DatasetDict:
    return DatasetDict({split: Dataset.from_dict({"text": rows}) for split, rows in texts.items()})


def said(caplog) -> list[str]:
    return [record.message for record in caplog.records if record.name.startswith("gating.")]


def test_texts_in_two_splits_are_counted_in_one_warning(caplog):
    data = splits(train=["a", "b", "c", "", None], validation=["d", "a"], test=["b", "b", "e", "d", ""])
    take_columns(data, {"text": "text"})
    assert said(caplog) == [
        "1 of 2 validation examples are in the train data, too; 2 of 5 test examples are in the train data, too; "
        "1 of 5 test examples are in the validation data, too: metrics look better than on new examples. Remove them "
        "from one of the two."
    ]


def test_pairs_are_equal_where_both_texts_are(caplog):
    train = Dataset.from_dict({"a": ["x", "y"], "b": ["1", "2"], "label": ["p", "q"]})
    other = Dataset.from_dict({"a": ["x", "y"], "b": ["2", "1"], "label": ["p", "q"]})
    roles = {"text": "a", "text_pair": "b", "label": "label"}
    take_columns(DatasetDict(train=train, validation=other), roles)
    assert said(caplog) == []
    take_columns(DatasetDict(train=train, validation=train.select([1])), roles)
    assert said(caplog)[0].startswith("1 of 1 validation examples")


@pytest.mark.parametrize(
    "values",
    [
        [["two", "words"], ["one"]],
        [1, 2],
        [b"\xff", b"x"],
        [datetime.date(2024, 2, 29), datetime.date(2024, 3, 1)],
        [PIL.Image.fromarray(np.full((2, 2), level, dtype=np.uint8)) for level in (0, 200)],
    ],
)
def test_words_numbers_and_images_are_compared_too(values, caplog):
    data = splits(train=values, test=values[1:])
    warn_of_overlap(data, ["text"])
    assert said(caplog)[0].startswith("1 of 1 test examples")


def test_texts_of_embeddings_are_compared_too(caplog):
    read_examples(splits(train=["a", "b"], validation=["c"], test=["b"]), None, None, None, loss=None)
    assert said(caplog)[0].startswith("1 of 1 test examples")
