"""Texts as blocks of tokens."""

import pytest
from datasets import Dataset, DatasetDict

from gating.data.tokenizers import train_tokenizer
from gating.tasks.blocks import cut_into_blocks

TEXTS = ["abc", "defgh", "", "ijklmnop"]
TABLE = Dataset.from_dict({"text": TEXTS})


@pytest.fixture(scope="module")
def tokenizer():
    """Return a tokenizer with a token for each letter."""
    return train_tokenizer(TABLE, size=260, frame="none")


def blocks_of(tokenizer, texts, **options):
    splits = cut_into_blocks(DatasetDict(train=Dataset.from_dict({"text": texts})), tokenizer, **options)
    return [tokenizer.decode(ids) for ids in splits["train"]["input_ids"]]


def test_texts_are_concatenated_and_the_remainder_is_a_block(tokenizer):
    assert blocks_of(tokenizer, TEXTS, length=6, with_ends=False) == ["abcdef", "ghijkl", "mnop"]


def test_eos_tokens_are_between_texts(tokenizer):
    blocks = blocks_of(tokenizer, TEXTS, length=8, with_ends=True)
    assert "".join(blocks) == "abc</s>defgh</s></s>ijklmnop"
    assert blocks_of(tokenizer, ["abc"], length=8, with_ends=True) == ["abc"]


def test_eos_tokens_of_the_tokenizer_are_not_doubled():
    framing = train_tokenizer(TABLE, size=260, frame="end")
    assert "".join(blocks_of(framing, ["ab", "cd"], length=9, with_ends=True)) == "ab</s>cd</s>"


def test_a_text_shorter_than_a_block_is_a_block(tokenizer):
    assert blocks_of(tokenizer, ["abc"], length=128, with_ends=True) == ["abc"]


@pytest.mark.parametrize(("length", "expected"), [(4, ["abcd"]), (2, ["ab", "cd"]), (3, ["abc", "de"])])
def test_a_last_token_alone_predicts_nothing(length, expected, tokenizer):
    assert blocks_of(tokenizer, ["abcde"], length=length, with_ends=True) == expected
