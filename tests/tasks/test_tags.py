"""Tags of tokens as numbers."""

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value

from gating.tasks.metrics.tags import mark_spans
from gating.tasks.token_classification import encode_tags


def splits(**columns) -> DatasetDict:
    table = Dataset.from_dict(columns)
    return DatasetDict(train=table, validation=table)


def test_strings_and_lists_give_the_same_tags():
    one = encode_tags(splits(text=["a b", "c"], label=["O B-x", "I-x"]))
    other = encode_tags(splits(text=[["a", "b"], ["c"]], label=[["O", "B-x"], ["I-x"]]))
    assert one[1] == other[1] == ["B-x", "I-x", "O"]
    for encoded, _ in (one, other):
        assert encoded["validation"][:] == {"words": [["a", "b"], ["c"]], "tags": [[2, 0], [1]]}


def test_declared_classes_keep_their_order():
    features = Features({"text": List(Value("string")), "label": List(ClassLabel(names=["O", "B-y", "B-x"]))})
    table = Dataset.from_dict({"text": [["a", "b"]], "label": [[2, 0]]}, features=features)
    encoded, names = encode_tags(DatasetDict(train=table))
    assert names == ["O", "B-y", "B-x"]
    assert encoded["train"]["tags"][0] == [2, 0]


def test_a_tag_that_only_the_test_has_gets_a_number_too():
    train, test = (Dataset.from_dict({"text": ["a b"], "label": [tags]}) for tags in ("O B-x", "O B-y"))
    assert encode_tags(DatasetDict(train=train, test=test))[1] == ["B-x", "B-y", "O"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text": ["a b"], "label": ["O"]}, "2 words but 1 tags in row 1.*task=sequence_classification"),
        ({"text": ["a b"], "label": [3]}, "2 words but 0 tags in row 1"),
        ({"text": ["a b"], "label": ["O O"]}, "at least two"),
        ({"text": [["a", "b"]], "label": [["O", None]]}, "in row 1, or some are missing"),
        ({"text": [["a", None]], "label": [["O", "B-x"]]}, "in row 1, or some are missing"),
        ({"text": ["a", ""], "label": ["O", ""]}, "0 words but 0 tags in row 2"),
    ],
)
def test_invalid_tags_are_named(columns, message):
    with pytest.raises(ValueError, match=message):
        encode_tags(splits(**columns))


def test_tags_of_spans_are_recognized():
    assert mark_spans(["O", "B-x", "I-x", "S-creative-work"])
    assert not mark_spans(["O", "NOUN"])
    assert not mark_spans(["0", "1"])
