"""Columns of a table and their roles, and warnings of examples in more than one split."""

import datetime

import numpy as np
import PIL.Image
import pytest
from datasets import Dataset, DatasetDict

from gating.data.columns import find_column, find_input_columns, find_text_columns, take_columns, warn_of_overlap
from gating.tasks.embedding_examples import read_examples


def splits(*names: str) -> DatasetDict:
    table = Dataset.from_dict({name: [f"{name} 1", f"{name} 2"] for name in names})
    return DatasetDict(train=table, validation=table)


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["text", "label"], {"text": "text"}),
        (["text_a", "text_b", "text"], {"text": "text_a", "text_pair": "text_b"}),
        (["idx", "premise", "hypothesis"], {"text": "premise", "text_pair": "hypothesis"}),
        (["question", "sentence"], {"text": "question", "text_pair": "sentence"}),
        (["question", "answer"], {"text": "question", "text_pair": "answer"}),
        (["sentence"], {"text": "sentence"}),
        (["body"], {"text": "text"}),
    ],
)
def test_texts_and_pairs_are_found_by_their_usual_names(names, found):
    assert find_text_columns(splits(*names), None, None) == found


def test_a_column_is_found_by_its_first_usual_name():
    assert find_column(splits("text", "labels", "label"), None, ("label", "labels")) == "label"
    assert find_column(splits("text", "labels"), "text", ("label", "labels")) == "text"


def test_a_given_text_column_is_a_pair_only_with_a_given_second_column():
    data = splits("text_a", "text_b")
    assert find_text_columns(data, "text_a", None) == {"text": "text_a"}
    assert find_text_columns(data, "text_b", "text_a") == {"text": "text_b", "text_pair": "text_a"}


def test_columns_get_the_names_of_their_roles():
    taken = take_columns(splits("first", "second", "kind", "other"), {"text": "second", "label": "kind"})
    assert taken["validation"][0] == {"text": "second 1", "label": "kind 1"}


@pytest.mark.parametrize(
    ("names", "settings", "found"),
    [
        (["id", "text", "label"], {}, ["text"]),
        (["context", "question", "answers"], {"max_length": 3}, ["context", "question"]),
        (["premise", "hypothesis"], {"text_column": "hypothesis", "label_column": "premise"}, ["hypothesis"]),
        (["body", "title"], {"text_column": "body", "text_pair_column": "title"}, ["body", "title"]),
        (["image", "label"], {"image_column": None}, ["image"]),
        (["body"], {"text_column": "translation.en"}, []),
    ],
)
def test_input_columns_are_found_without_the_task(names, settings, found):
    assert find_input_columns(splits(*names)["train"], settings) == found


def texts_of(**texts: list) -> DatasetDict:
    return DatasetDict({split: Dataset.from_dict({"text": rows}) for split, rows in texts.items()})


def said(caplog) -> list[str]:
    return [record.message for record in caplog.records if record.name.startswith("gating.")]


def test_texts_in_two_splits_are_counted_in_one_warning(caplog):
    data = texts_of(train=["a", "b", "c", "", None], validation=["d", "a"], test=["b", "b", "e", "d", ""])
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
    data = texts_of(train=values, test=values[1:])
    warn_of_overlap(data, ["text"])
    assert said(caplog)[0].startswith("1 of 1 test examples")


def test_texts_of_embeddings_are_compared_too(caplog):
    read_examples(texts_of(train=["a", "b"], validation=["c"], test=["b"]), None, None, None, loss=None)
    assert said(caplog)[0].startswith("1 of 1 test examples")
