"""Class labels as numbers."""

import json

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from gating.data.labels import encode_labels, hint_at_regression, using_classes
from gating.data.sources import load_files
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
        ([0.5, 1.0], [1.0], "fractions"),
        ([["a"], ["b"]], [["a"]], "more than one label in row 1.*task=token_classification"),
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


def test_nan_is_a_missing_label():
    with pytest.raises(ValueError, match=r"has no label in row 3"):
        encode_labels(splits([0.0, 1.0, float("nan")], [1.0]))


def test_texts_and_numbers_in_one_column_of_json_are_refused(tmp_path):
    path = tmp_path / "mixed.jsonl"
    path.write_text("".join(json.dumps({"text": "x", "label": label}) + "\n" for label in ("first", "-", 2)))
    with pytest.raises(ValueError, match=r"labels of several kinds.*write all of them as texts"):
        encode_labels(load_files(train=str(path), validation=str(path)).splits)


@pytest.mark.parametrize("encode", ["labels", "tags"])
def test_classes_that_differ_only_in_case_and_spaces_are_warned_of(encode, caplog):
    names = [spell(name) for name in ("food", "music", "sport") for spell in (str, str.upper, str.title, " {} ".format)]
    if encode == "labels":
        _, classes = encode_labels(splits(names, ["food"]))
    else:
        _, classes = encode_tags(splits([[name] for name in names], [["food"]]).map(lambda row: {"text": ["x"]}))
    assert len(classes) == 12
    (record,) = caplog.records
    assert record.message.startswith("12 classes are 3 when case, spaces, invisible characters and ")
    assert "' food ' (1), " in record.message


def test_other_classes_are_not_warned_of(caplog):
    encode_labels(splits(["foods", "food", "01", "1"], ["food"]))
    assert caplog.records == []


@pytest.mark.parametrize(
    ("labels", "number"),
    [
        ([*range(21)], 21),
        ([float(value) for value in range(30)], 30),
        ([str(value) for value in range(0, 100, 2)], 50),
        ([*range(20)], None),
        ([f"kind {value}" for value in range(30)], None),
        ([*map(str, range(30)), "other"], None),
    ],
)
def test_many_whole_numbers_get_a_hint_at_regression(labels, number, caplog):
    data = splits(labels, labels[:1])
    hint_at_regression(data, encode_labels(data)[1])
    hint = f"The labels are {number} whole numbers, which are learned as classes without an order. If they are "
    expected = [] if number is None else [f"{hint}quantities, learn them with task=regression."]
    assert [record.message for record in caplog.records] == expected


def test_numbers_that_are_declared_as_classes_get_no_hint(caplog):
    names = [str(number) for number in range(30)]
    features = Features({"label": ClassLabel(names=names)})
    table = Dataset.from_dict({"label": [*range(30)]}, features=features)
    hint_at_regression(DatasetDict(train=table), names)
    with using_classes(names):
        hint_at_regression(splits([*range(30)], [0]), names)
    assert caplog.records == []
