"""Columns of a table and their roles."""

import pytest
from datasets import Dataset, DatasetDict

from gating.data.columns import find_column, find_input_columns, find_text_columns, take_columns


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
