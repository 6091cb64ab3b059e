"""Validation and test splits that are drawn from the training data."""

from collections import Counter

import datasets
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from gating.data.examples import Examples
from gating.data.held_out import draw_splits, hold_out
from gating.data.sources import load_hub


def table(labels: list, texts: list | None = None) -> Dataset:
    return Dataset.from_dict({"text": texts or [f"text {row}" for row in range(len(labels))], "label": labels})


def divided(rows: Dataset, *, test: Dataset | None = None, has_classes: bool = True, seed: int = 0, **settings):
    splits = DatasetDict(train=rows) if test is None else DatasetDict(train=rows, test=test)
    return hold_out(Examples(splits, metrics=("f1",)), settings=settings, has_classes=has_classes, seed=seed).splits


def sizes(splits) -> list[int]:
    return [len(rows) for rows in splits.values()]


def test_a_table_of_300_rows_gives_all_splits_each_row_in_one(capsys):
    rows = table(["food", "music", "sport"] * 100)
    splits = divided(rows)
    assert list(splits) == ["train", "validation", "test"]
    assert sizes(splits) == [240, 30, 30]
    assert sorted(text for part in splits.values() for text in part["text"]) == sorted(rows["text"])
    assert capsys.readouterr().out == (
        "The training data is divided with seed 0 and stratified by label, of 300 rows: 240 train, 30 validation, "
        "30 test.\n"
    )


def test_every_label_has_its_share_and_stays_in_the_training_data():
    splits = divided(table(["often"] * 200 + ["rare"] * 99 + ["once"]))
    counts = [Counter(part["label"]) for part in splits.values()]
    assert [count["often"] for count in counts] == pytest.approx([160, 20, 20], abs=1)
    assert [count["once"] for count in counts] == [1, 0, 0]


def test_the_draw_follows_the_seed():
    rows = table(["a", "b"] * 50)
    assert divided(rows)["test"]["text"][:] == divided(rows)["test"]["text"][:]
    assert divided(rows)["test"]["text"][:] != divided(rows, seed=1)["test"]["text"][:]


def test_equal_texts_go_into_one_split():
    texts = [f"text {row % 60}" for row in range(300)]
    for settings in ({}, {"text_column": "text"}):
        splits = divided(table(["a", "b"] * 150, texts), **settings)
        assert sum(sizes(splits)) == 300
        assert not set(splits["train"]["text"]) & set(splits["test"]["text"])
        assert not set(splits["validation"]["text"]) & set(splits["test"]["text"])


def test_given_test_splits_and_complete_splits_are_kept():
    rows, test = table(["a", "b"] * 50), table(["a", "b"])
    splits = divided(rows, test=test)
    assert sizes(splits) == [90, 10, 2]
    examples = Examples(DatasetDict(train=rows, validation=test))
    assert hold_out(examples, settings={}, has_classes=True, seed=0) is examples


@pytest.mark.parametrize(
    "labels",
    [
        [row / 7 for row in range(50)],
        [["O", "B-name"]] * 50,
        [{"text": ["x"], "answer_start": [0]}] * 50,
        [f"O O {row}" for row in range(50)],
    ],
)
def test_draws_without_classes_are_not_stratified(labels):
    assert sizes(divided(table(labels), has_classes=False)) == [40, 5, 5]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["a", "b", "a", "b"], [2, 1, 1]),
        (["a", "b"] * 4 + ["c"], [7, 1, 1]),
        (["a", "a", "b"], None),
        (["a"], None),
        (["a", "b", "c", "d", "e", "f", "g", "h", "i"], None),
    ],
)
def test_small_tables_are_divided_or_refused_in_one_sentence(labels, expected):
    if expected is not None:
        assert sizes(divided(table(labels))) == expected
        return
    with pytest.raises(ValueError, match=rf"has {len(labels)} row\(s\), too few to draw validation and test data"):
        divided(table(labels))


def test_classes_of_the_hub_have_their_shares_also_where_one_has_a_single_row(tmp_path):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["a", "b", "c"])})
    rows = Dataset.from_dict({"text": [str(n) for n in range(41)], "label": [0, 1] * 20 + [2]}, features=features)
    drawn = draw_splits(rows, ["validation"], label="label", seed=0)
    assert Counter(drawn["validation"]["label"]) == {0: 3, 1: 2} or Counter(drawn["validation"]["label"]) == {
        0: 2,
        1: 3,
    }
    (tmp_path / "data").mkdir()
    rows.to_parquet(tmp_path / "data" / "train.parquet")
    loaded = load_hub(path=str(tmp_path / "data"), validation_split=None, test_split=None)
    splits = hold_out(loaded, settings={}, has_classes=True, seed=0).splits
    assert sizes(splits) == [31, 5, 5]
    assert 2 not in splits["validation"]["label"][:]
    assert sorted(text for part in splits.values() for text in part["text"]) == sorted(rows["text"])


def test_a_million_rows_take_seconds():
    rows = Dataset(datasets.table.InMemoryTable.from_pydict({"text": list(map(str, range(10**6)))}))
    assert sizes(divided(rows, has_classes=False)) == [980_000, 10_000, 10_000]
