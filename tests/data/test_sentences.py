"""Sentences as examples."""

from gating.data.sentences import load_bbc_sentences, load_sentences


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
