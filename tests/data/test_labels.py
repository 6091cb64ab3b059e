"""Class labels as numbers."""

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from gating.data.labels import encode_labels
from gating.tasks.token_classification import encode_tags


def splits(train: list, validation: list) -> DatasetDict:
    return DatasetDict(
        {
            name: Dataset.from_dict({"text": ["x"] * len(labels), "label": labels})
            for name, labels in (("train", train), ("validation", validation))
        }
    )


def test_words_are_sorted_and_numbered():
    encoded, names = encode_labels(splits(["b", "a", "b"], ["a"]))
    assert names == ["a", "b"]
    assert encoded["train"]["label"][:] == [1, 0, 1]
    assert encoded["validation"]["label"][:] == [0]


def test_numbers_are_sorted_by_value_not_by_digits():
    _, names = encode_labels(splits([10, 9, -1], [9]))
    assert names == ["-1", "9", "10"]


def test_declared_classes_keep_their_order():
    features = Features({"text": Value("string"), "label": ClassLabel(names=["yes", "no"])})
    table = Dataset.from_dict({"text": ["x", "y"], "label": [1, 0]}, features=features)
    encoded, names = encode_labels(DatasetDict(train=table, validation=table))
    assert names == ["yes", "no"]
    assert encoded["train"]["label"][:] == [1, 0]


def test_scores_are_no_classes_unless_they_are_declared():
    with pytest.raises(ValueError, match="task=regression"):
        encode_labels(splits([3, 2.5], [3]))
    features = Features({"text": Value("string"), "label": ClassLabel(names=["3.10", "3.11"])})
    table = Dataset.from_dict({"text": ["x", "y"], "label": [1, 0]}, features=features)
    assert encode_labels(DatasetDict(train=table, validation=table))[1] == ["3.10", "3.11"]


def test_same_label_read_as_number_and_as_word_is_one_class():
    encoded, names = encode_labels(splits([0, 1], ["1", "0"]))
    assert names == ["0", "1"]
    assert encoded["validation"]["label"][:] == [1, 0]


@pytest.mark.parametrize(
    ("train", "validation", "message"),
    [
        (["a", "b"], ["a", "c"], r"'c' \(row 2\)"),
        (["a", "b"], [None, "a"], "no label in row 1"),
        (["a", "b"], ["a", ""], "no label in row 2"),
        (["a", "a"], ["a"], "at least two"),
        ([0.0, 1.0, float("nan")], [1.0], "no label in row 3"),
    ],
)
def test_invalid_labels_are_named(train, validation, message):
    with pytest.raises(ValueError, match=message):
        encode_labels(splits(train, validation))


@pytest.mark.parametrize(("rest", "validation"), [("n/a", ["1.0", "2.0"]), ("beta", ["1.5", "1.0"])])
def test_labels_of_all_files_are_read_like_those_of_the_training_file(rest, validation):
    encoded, names = encode_labels(splits(["1.0", "2.0", "1.5", rest], validation))
    assert names == ["1.0", "1.5", "2.0", rest]
    assert [names[number] for number in encoded["validation"]["label"]] == validation


def test_labels_of_a_model_have_its_numbers():
    encoded, names = encode_labels(splits(["a", "b"], ["c"]), ["b", "a", "c"])
    assert names == ["b", "a", "c"]
    assert [encoded[split]["label"][:] for split in encoded] == [[1, 0], [2]]


def test_words_such_as_null_are_classes():
    _, names = encode_labels(splits(["NA", "null", "nan", "None", "007", "7"], ["NA"]))
    assert names == ["007", "7", "NA", "None", "nan", "null"]


@pytest.mark.parametrize("encode", ["labels", "tags"])
@pytest.mark.parametrize("other", ["Sport", " sport "])
def test_classes_that_differ_only_in_case_and_spaces_are_warned_of_with_their_numbers(encode, other, caplog):
    names, usual = ["sport"] * 7 + [other, "weather"], "sport"
    if encode == "labels":
        encode_labels(splits(names, [usual]))
    else:
        encode_tags(splits([[name] for name in names], [[usual]]).map(lambda row: {"text": ["x"]}))
    (record,) = caplog.records
    assert record.message.startswith("3 classes are 2 when ")
    assert f"{other!a} (1)" in record.message
