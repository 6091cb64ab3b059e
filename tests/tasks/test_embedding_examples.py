"""Texts and pairs of texts as examples of sentence embeddings, and negations of English sentences."""

import random

import pytest
import torch
from datasets import Dataset, DatasetDict, Value

from gating.data.held_out import hold_out
from gating.data.sources import load_hub
from gating.errors import InputError
from gating.tasks.embedding_examples import (
    add_negations,
    collate_pairs,
    kind_of,
    negate,
    read_examples,
    tokenize_examples,
)

TEXTS = {"text": ["the cat", "a dog ran home", "the mat"]}
POSITIVES = {"text_a": ["the cat", "the cat", "a dog"], "text_b": ["a cat", "the mat", "a cat"]}
SCORES = {**POSITIVES, "score": [1, 5, 3]}


def read(train: dict, validation: dict | None = None, *, loss: str | None = None, **columns: str):
    given = [columns.get(name) for name in ("text", "text_pair", "label")]
    tables = {"train": train, "validation": validation or train}
    splits = read_examples(
        DatasetDict({name: Dataset.from_dict(table) for name, table in tables.items()}), *given, loss=loss
    )
    return splits, {split: kind_of(table) for split, table in splits.items()}


def test_columns_decide_what_examples_are():
    for table, kind in ((TEXTS, "texts"), (POSITIVES, "positives"), (SCORES, "scores")):
        splits, kinds = read(table)
        assert kinds == {"train": kind, "validation": kind}
        assert len(splits["train"]) == 3
    assert splits["train"]["score"][:] == [0.0, 1.0, 0.5]
    assert read({"sentence1": ["a"], "sentence2": ["b"], "label": [0.5]})[1]["train"] == "scores"
    assert read({**POSITIVES, "mark": ["1", "2", "4"]}, label="mark")[1]["train"] == "scores"
    assert read({"one": ["a"], "two": ["b"]}, text="one", text_pair="two")[1]["train"] == "positives"


@pytest.mark.parametrize(
    ("table", "kind"),
    [
        ({"anchor": TEXTS["text"], "positive": POSITIVES["text_b"]}, "positives"),
        ({"query": TEXTS["text"], "answer": POSITIVES["text_b"]}, "positives"),
        ({"anchor": TEXTS["text"], "positive": POSITIVES["text_b"], "negative": TEXTS["text"]}, "positives"),
        ({"sentence1": TEXTS["text"], "sentence2": POSITIVES["text_b"], "score": [0.1, 0.5, 0.8]}, "scores"),
    ],
)
def test_pairs_of_the_hub_have_the_columns_of_sentence_transformers(tmp_path, table, kind):
    # Equal texts would be in one split.
    rows = {name: [f"{value} {n}" for n in range(10) for value in values] for name, values in table.items()}
    if "score" in table:
        rows["score"] = table["score"] * 10
    rows = Dataset.from_dict(rows)
    rows.to_parquet(tmp_path / "pair" / "train-00000-of-00001.parquet")
    loaded = load_hub(path=str(tmp_path), validation_split=None, test_split=None)
    splits = read_examples(hold_out(loaded, settings={}, has_classes=False, seed=0).splits, None, None, None, loss=None)
    assert {kind_of(table) for table in splits.values()} == {kind}
    assert set(splits) == {"train", "validation", "test"}
    first, second = list(table)[:2]
    assert set(splits["train"]["text"]) < set(rows[first])
    assert set(splits["test"]["text_pair"]) < set(rows[second])


def test_splits_may_have_other_columns_and_have_rows():
    assert read(TEXTS, SCORES)[1] == {"train": "texts", "validation": "scores"}
    with pytest.raises(InputError, match="validation data has no rows"):
        read(TEXTS, {name: [] for name in SCORES})
    both = {"one": ["a"], "two": ["b"], "mark": [0.5]}
    assert read({"one": ["a"]}, both, text="one", text_pair="two", label="mark")[1]["validation"] == "scores"


def test_distance_takes_both_texts_of_training_pairs_and_no_score():
    splits, kinds = read({**SCORES, "label": [0, 1, 2]}, SCORES, loss="distance")
    assert kinds == {"train": "positives", "validation": "scores"}
    assert set(splits["train"].column_names) == {"text", "text_pair"}


def test_negations_are_added_to_training_texts():
    pairs = Dataset.from_dict({"text": ["Dogs run", "A cat sleeps"] * 50, "text_pair": ["He is fast", "Birds"] * 50})
    added = add_negations(pairs, 0.02)
    assert added.select(range(100)).to_list() == pairs.to_list()
    negations = {("He is not fast", "He is fast"), ("No cat sleeps", "A cat sleeps")}
    negations.add(("There is no cat sleeps", "A cat sleeps"))
    rows = {(row["text"], row["text_pair"]) for row in added.select(range(100, len(added)))}
    assert len(rows) == 2
    assert rows < negations
    assert add_negations(pairs, 0.02).to_list() == added.to_list()
    large = pairs.cast_column("text", Value("large_string"))
    assert add_negations(large, 0.02).to_list() == added.to_list()
    years = Dataset.from_dict({"text": ["Dogs run", "A cat is here"], "text_pair": [1984, 2001]})
    assert add_negations(years, 0.1)[2]["text_pair"] == "A cat is here"
    single = add_negations(pairs.remove_columns("text_pair"), 1)
    assert single["text"][100:] in (["No cat sleeps"], ["There is no cat sleeps"])
    with pytest.raises(InputError, match=r"task.negations=0.1: none"):
        add_negations(Dataset.from_dict({"text": ["Hunde rennen"]}), 0.1)


def collated(tokenizer, table: dict, **columns: list) -> dict[str, torch.Tensor]:
    tokens = tokenize_examples(read(table)[0], tokenizer, 6)["train"]
    rows = [{**row, **{name: values[number] for name, values in columns.items()}} for number, row in enumerate(tokens)]
    return collate_pairs(tokenizer, rows)


def test_a_batch_has_texts_and_second_texts_padded_each(tokenizer):
    batch = collated(tokenizer, SCORES)
    for prefix, column in (("", "text_a"), ("task_pair_", "text_b")):
        expected = tokenizer(SCORES[column], padding=True, return_tensors="pt")
        for name, value in expected.items():
            assert torch.equal(batch[f"{prefix}{name}"], value)
    assert batch["task_scores"].tolist() == [0.0, 1.0, 0.5]
    first, second = batch["task_query"].tolist(), batch["task_document"].tolist()
    assert first[0] == first[1] != first[2] == collated(tokenizer, {"text": ["a dog"]})["task_query"].item()
    assert second[0] == second[2] != second[1]


def test_texts_of_pairs_with_embeddings_of_a_teacher_are_one_batch(tokenizer):
    firsts, seconds = [[1.0], [2.0], [3.0]], [[4.0], [5.0], [6.0]]
    batch = collated(tokenizer, POSITIVES, task_embeddings=firsts, task_pair_embeddings=seconds)
    expected = tokenizer([*POSITIVES["text_a"], *POSITIVES["text_b"]], padding=True, return_tensors="pt")
    assert torch.equal(batch["input_ids"], expected["input_ids"])
    assert batch["task_embeddings"].flatten().tolist() == [1, 2, 3, 4, 5, 6]
    assert set(batch) == {*expected, "task_embeddings", "task_query"}
    assert batch["task_query"][3] == batch["task_query"][5] != batch["task_query"][0]


def test_texts_are_truncated(tokenizer):
    splits = read({"text": ["the cat sat on the mat", "a dog", "the cat sat down"]})[0]
    tokens = tokenize_examples(splits, tokenizer, 5)["train"]
    assert [len(row) for row in tokens["input_ids"]] == [5, 4, 5]
    # Those that no model can tell apart are one text.
    assert tokens["task_query"][0] == tokens["task_query"][2] != tokens["task_query"][1]


@pytest.mark.parametrize(
    ("text", "negations"),
    [
        ("A man is singing.", {"A man is not singing.", "No man is singing."}),
        ("The cats can swim and are fast", {"The cats can not swim and are fast", "No cats can swim and are fast"}),
        ("a man on stage", {"no man on stage", "there is no man on stage"}),
        ("Three dogs run", {"No dogs run", "There is no dogs run"}),
        ("They were late", {"They were not late"}),
        ("They were not late", set()),
        ("it does n't matter", set()),
        ("He can't swim and is slow", set()),
        ("No one can swim, and he is never late", set()),
        ("An important elephant is here", {"An important elephant is not here", "No important elephant is here"}),
        ("One of the dogs is here", {"One of the dogs is not here"}),
        ("He'd say it's his", set()),
        ("Dogs run", set()),
        ("Ein Hund rennt", set()),
        ("", set()),
        ("a " + "very " * 25 + "long one", set()),
    ],
)
def test_forms_of_a_text(text, negations):
    assert {negate(text, random.Random(seed)) for seed in range(20)} - {None} == negations
