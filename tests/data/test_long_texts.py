"""Very long words and texts: a new tokenizer learns from them in time, and truncation does not read them whole."""

import pytest
from datasets import Dataset

from gating.data.text.tokenizers import _texts, train_tokenizer
from gating.data.text.tokens import beginning, load_tokenizer
from gating.models.pretrained import Pretrained
from tests.support.tiny_run import make_model_folder

# A word of a megabyte: one letter, characters without spaces between them, digits, signs, spaces.
LONG = {"letter": "a", "han": "\u4e2d\u6587\u5b57", "digits": "0123456789", "signs": "-=", "spaces": " \n"}


@pytest.mark.parametrize("kind", LONG)
def test_a_new_tokenizer_learns_from_a_text_of_one_long_word(kind):
    text = (LONG[kind] * 10**6)[: 10**6]
    tokenizer = train_tokenizer(Dataset.from_dict({"text": [f"some words {text} and more"]}), size=400, frame="none")
    assert tokenizer.decode(tokenizer(text[:500])["input_ids"]) == text[:500]


def test_texts_without_long_words_are_learned_from_as_they_are():
    texts = ["words, and more: " * 100, "\u4e2d\u6587\uff0c\u5b57\u3002" * 1000, "x" * 255, "a1" * 1000]
    assert [text for batch in _texts(Dataset.from_dict({"text": texts})) for text in batch] == texts


def test_only_a_part_of_the_long_words_is_learned_from():
    table = Dataset.from_dict({"text": [f"first {'x' * 10**6} last"]})
    (pieces,) = _texts(table)
    assert pieces[0] == f"first {'x' * 256}"
    assert pieces[-1].endswith(" last")
    assert sum(map(len, pieces)) < 300_000


def test_truncated_tokens_of_a_long_text_are_those_of_the_whole_text(tmp_path):
    tokenizer = load_tokenizer(Pretrained(str(make_model_folder(tmp_path / "model"))))
    long = "word1 word2 " * 50_000
    assert len(beginning(long, tokenizer, 16)) == 100_000
    for text in (long, " " * 200_000 + "word1 word2", "x" * 200_000 + " word3", "word1"):
        kept = beginning(text, tokenizer, 16)
        options = {"truncation": True, "max_length": 16}
        assert tokenizer(kept, **options)["input_ids"] == tokenizer(text, **options)["input_ids"]
