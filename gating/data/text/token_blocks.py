"""Running text as blocks of tokens of one length."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gating.data.columns import find_column, take_columns
from gating.data.sources import Examples
from gating.data.text.tokens import check_texts, tokenize, truncation_length
from gating.errors import InputError

__all__ = ["cut_into_blocks", "read_blocks"]


# Usual names of the column of text; the first one that is there is taken.
_TEXT_COLUMNS = ("text", "content", "sentence", "document")


def read_blocks(
    examples: Examples,
    tokenizer: PreTrainedTokenizerBase,
    blueprint: PreTrainedModel,
    *,
    max_length: int,
    text_column: str | None,
    with_ends: bool,
) -> DatasetDict:
    """Find the texts of a data set and cut them into blocks that a model can read.

    Args:
        examples: The data.
        tokenizer: The model's tokenizer.
        blueprint: The model without its weights.
        max_length: Number of tokens of a block; fewer where the model has fewer positions.
        text_column: Column of the text; a usual name when left out.
        with_ends: As in :func:`cut_into_blocks`.

    Raises:
        ValueError: The column is missing, a row has no text, or there is too little of it.
    """
    texts = take_columns(examples.splits, {"text": find_column(examples.splits, text_column, _TEXT_COLUMNS)})
    check_texts(texts, ["text"])
    return cut_into_blocks(texts, tokenizer, length=truncation_length(blueprint, max_length), with_ends=with_ends)


def cut_into_blocks(
    splits: DatasetDict, tokenizer: PreTrainedTokenizerBase, *, length: int, with_ends: bool
) -> DatasetDict:
    """Replace the column ``text`` of every split by ``input_ids``: all texts one after the other, cut into blocks.

    The last block of a split is as short as it comes; nothing is lost but a single last token, which predicts nothing.

    Args:
        splits: The data.
        tokenizer: The model's tokenizer.
        length: Number of tokens of a block.
        with_ends: Whether a text ends with the tokenizer's token for that where others follow it.

    Raises:
        ValueError: The texts of a split have less than two tokens.
    """

    def function(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return {"input_ids": tokenizer([str(text) for text in batch["text"]])["input_ids"]}

    tokens = tokenize(splits, function)
    end = tokenizer.eos_token_id if with_ends else None
    blocks = {}
    for split, table in tokens.items():
        stream = np.concatenate(list(_pieces(table, end)))
        if len(stream) < 2:
            raise InputError(f"The {split} data has {len(stream)} token(s) of text; a model learns from two or more.")
        starts = range(0, len(stream) - 1, length)
        blocks[split] = Dataset.from_dict({"input_ids": [stream[start : start + length] for start in starts]})
    return DatasetDict(blocks)


def _pieces(table: Dataset, end: int | None) -> Iterator[np.ndarray[Any, np.dtype[np.int64]]]:
    for row, ids in enumerate(table["input_ids"]):
        is_closed = end is None or row == len(table) - 1 or (ids and ids[-1] == end)
        yield np.asarray(ids if is_closed else [*ids, end], dtype=np.int64)
