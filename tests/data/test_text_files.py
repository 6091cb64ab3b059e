"""Plain text, in one file or several, and its sentences."""

import json

from gating.data.sentences import load_bbc_sentences, load_sentences
from gating.data.sources import load_text

LINES = "".join(f"line {number} of a play\n" for number in range(200))


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return str(path)


def joined(examples, split):
    return "".join(examples.splits[split]["text"])


def test_a_file_is_one_text_as_it_is(tmp_path):
    files = {split: write(tmp_path / f"{split}.txt", f"{split}\n\n  äöü\t{LINES}") for split in ("train", "validation")}
    examples = load_text(**files)
    assert list(examples.splits) == ["train", "validation"]
    assert examples.splits["train"]["text"][:] == [f"train\n\n  äöü\t{LINES}"]


def test_one_file_gives_all_splits_at_ends_of_lines(tmp_path):
    examples = load_text(train=write(tmp_path / "play.txt", LINES))
    parts = [joined(examples, split) for split in ("train", "validation", "test")]
    assert "".join(parts) == LINES
    assert all(part.endswith("\n") for part in parts)
    assert [round(len(part) / len(LINES), 2) for part in parts] == [0.9, 0.05, 0.05]


def test_blank_lines_are_no_split_of_their_own(tmp_path):
    text = LINES[:1000] + "\n" * 60 + LINES[1000:2000] + " \n" * 200
    examples = load_text(train=write(tmp_path / "play.txt", text))
    parts = [joined(examples, split) for split in ("train", "validation", "test")]
    assert "".join(parts) == text
    assert all(part.strip() for part in parts)
    examples = load_text(train=write(tmp_path / "short.txt", "some words" * 9 + "\n" * 30))
    assert joined(examples, "test").strip()


def test_a_text_without_lines_is_cut_anywhere(tmp_path):
    examples = load_text(train=write(tmp_path / "play.txt", "x" * 100))
    assert [len(joined(examples, split)) for split in ("train", "validation", "test")] == [90, 5, 5]


def test_with_a_test_file_the_last_tenth_is_for_validation(tmp_path):
    train, test = write(tmp_path / "play.txt", "x\n" * 50), write(tmp_path / "test.txt", "the test")
    examples = load_text(train=train, test=test)
    assert {split: len(joined(examples, split)) for split in examples.splits} == {
        "train": 90,
        "test": 8,
        "validation": 10,
    }


def test_rows_of_tables_are_texts(tmp_path):
    rows = [json.dumps({"text": f"text {number}", "id": number}) for number in range(40)]
    rows += [json.dumps({"text": " ", "id": 40})] * 8
    examples = load_text(train=write(tmp_path / "texts.jsonl", "\n".join(rows)))
    assert [len(table) for table in examples.splits.values()] == [36, 2, 2]
    assert examples.splits["test"]["text"][:] == ["text 38", "text 39"]


def test_lines_and_rows_are_texts(tmp_path):
    (tmp_path / "train.txt").write_text("The first one. It has two sentences.\n\n  Another \n", encoding="utf-8")
    (tmp_path / "test.csv").write_text("text_a,text_b,score\na,b,1\nc,d,2\n")
    splits = load_sentences(train=str(tmp_path / "train.txt"), test=str(tmp_path / "test.csv")).splits
    assert splits["train"]["text"][:] == ["The first one. It has two sentences.", "Another"]
    assert splits["test"].column_names == ["text_a", "text_b", "score"]
    assert set(splits) == {"train", "test"}


def test_sentences_of_the_articles_are_in_one_split_each():
    splits = load_bbc_sentences().splits
    texts = {
        split: {text for column in table.column_names for text in table[column]} for split, table in splits.items()
    }
    assert set(texts) == {"train", "validation", "test"}
    everything = [text for rows in texts.values() for text in rows]
    assert len(everything) == len(set(everything)) > 30_000
    assert min(len(text.split()) for text in everything) == 4
    pairs = set(zip(splits["train"]["text"], splits["train"]["text_pair"], strict=True))
    assert len(pairs) == len(splits["train"])
