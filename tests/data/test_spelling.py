"""Names that look the same and are not: classes, columns, tags and answers."""

import pytest
from datasets import Dataset, DatasetDict

from gating.data.columns import take_columns
from gating.data.labels import encode_labels
from gating.data.spelling import groups_of_spellings
from gating.tasks.token_classification import encode_tags
from gating.tasks.windows import read_answers

# Spellings of one name that a reader cannot tell apart, or hardly.
PAIRS = {
    "decomposed": ("caf\u00e9", "cafe\u0301"),
    "zero-width space": ("sport", "sport\u200b"),
    "zero-width joiner inside": ("sport", "sp\u200dort"),
    "byte order mark": ("sport", "\ufeffsport"),
    "no-break space": ("new york", "new\u00a0york"),
    "soft hyphen": ("sport", "sp\u00adort"),
    "right-to-left mark": ("sport", "\u200fsport"),
    "full width": ("sport", "\uff53\uff50\uff4f\uff52\uff54"),
    "ligature": ("finance", "\ufb01nance"),
    "variation selector": ("\u2708", "\u2708\ufe0f"),
    "filler": ("sport", "sport\u3164"),
    "control character": ("sport", "sport\x00"),
    "Cyrillic": ("sport", "sp\u043ert"),
    "Hangul": ("\ud55c\uad6d", "\u1112\u1161\u11ab\u1100\u116e\u11a8"),
    "case": ("sport", "Sport"),
    "hyphen": ("sci-fi", "sci\u2010fi"),
    "no-break hyphen": ("sci-fi", "sci\u2011fi"),
    "minus": ("-1", "\u22121"),
    "apostrophe": ("children's", "children\u2019s"),
    "slash": ("and/or", "and\u2215or"),
}


def of_labels(labels: list[str], validation: list[str]) -> DatasetDict:
    tables = {"train": labels, "validation": validation}
    return DatasetDict(
        {
            split: Dataset.from_dict({"text": [f"{split} {n}" for n in range(len(rows))], "label": rows})
            for split, rows in tables.items()
        }
    )


@pytest.mark.parametrize("kind", PAIRS)
def test_classes_of_one_look_are_warned_of_with_their_codes_and_numbers(kind, caplog):
    usual, other = PAIRS[kind]
    encode_labels(of_labels([usual] * 7 + [other, "weather"], [usual]))
    (record,) = caplog.records
    assert record.message.startswith("3 classes are 2 when ")
    assert f"{usual!a} (7)" in record.message
    assert f"{other!a} (1)" in record.message


@pytest.mark.parametrize("kind", PAIRS)
def test_an_unknown_label_of_the_look_of_a_class_is_named_with_its_codes(kind):
    usual, other = PAIRS[kind]
    with pytest.raises(ValueError, match="spell both the same way") as caught:
        encode_labels(of_labels([usual, "weather"], [other]))
    assert f"looks like {usual!a} and is {other!a}" in str(caught.value)


def test_different_names_are_not_spellings_of_each_other():
    names = [
        "a",
        "ab",
        "a b",
        "1",
        "01",
        "1.0",
        "é",
        "e",
        "ü",
        "u",
        "ß",
        "+",
        "-",
        "\U0001f600",
        "\U0001f603",
        "日",
        "曰",
    ]
    assert groups_of_spellings(names) == []


def test_tags_of_one_look_are_warned_of(caplog):
    rows = Dataset.from_dict({"text": ["a b c"], "label": [["B-caf\u00e9", "B-cafe\u0301", "O"]]})
    encode_tags(DatasetDict(train=rows))
    assert "3 classes are 2" in caplog.text


def test_a_column_of_the_look_of_a_needed_one_is_named():
    rows = Dataset.from_dict({"text": ["a"], "label\u200b": ["x"]})
    with pytest.raises(ValueError, match=r"'label\\u200b' is another spelling of it"):
        take_columns(DatasetDict(train=rows), {"text": "text", "label": "label"})


def test_a_second_column_of_the_look_of_a_read_one_is_warned_of(caplog):
    rows = Dataset.from_dict({"text": ["a"], "label": ["x"], "\uff4cabel": ["y"]})
    take_columns(DatasetDict(train=rows), {"text": "text", "label": "label"})
    assert r"the columns 'label' and '\uff4cabel', which look the same" in caplog.text


def test_an_answer_in_other_codes_than_its_text_is_named():
    row = {"context": ["In the cafe\u0301 today."], "answers": [{"text": ["caf\u00e9"], "answer_start": [7]}]}
    with pytest.raises(ValueError, match=r"other codes of the same characters.*normalize both"):
        read_answers(DatasetDict(train=Dataset.from_dict(row)))
