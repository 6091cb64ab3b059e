"""Texts as blocks of tokens of equal length, for language models."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, DatasetDict
from transformers import PreTrainedTokenizerBase

from gating.data.text.tokens import tokenize
from gating.errors import InputError

__all__ = ["cut_into_blocks"]

TokenIds = np.ndarray[Any, np.dtype[np.int32]]


def cut_into_blocks(
    splits: DatasetDict, tokenizer: PreTrainedTokenizerBase, *, length: int, with_ends: bool
) -> DatasetDict:
    """Tokenize the column ``text`` of every split, concatenate all texts, and cut the tokens into blocks.

    A block has ``length`` tokens. The last one of a split may be shorter; it is left out if it is a single token, since
    that predicts nothing. With ``with_ends``, each text but the last ends with the EOS token.

    Returns:
        The splits with one column, ``input_ids``.

    Raises:
        ValueError: The texts of a split have less than two tokens.
    """

    def tokenize_batch(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return {"input_ids": tokenizer([str(text) for text in batch["text"]])["input_ids"]}

    tokens = tokenize(splits, tokenize_batch, tokenizer=tokenizer)
    end = tokenizer.eos_token_id if with_ends else None
    blocks = {}
    for split, table in tokens.items():
        stream = _concatenate(table, end)
        if len(stream) < 2:
            raise InputError(f"The {split} data has {len(stream)} token(s) of text; training needs two or more.")
        starts = np.arange(0, len(stream) - 1, length)
        bounds = np.append(starts, min(len(stream), starts[-1] + length)).astype(np.int32)
        blocks[split] = Dataset.from_dict({"input_ids": pa.ListArray.from_arrays(bounds, stream)})
    return DatasetDict(blocks)


def _concatenate(table: Dataset, end: int | None) -> TokenIds:
    """Return the tokens of all texts, shape ``(num_tokens,)``, with an EOS token between texts unless it is None."""
    # NumPy and Arrow take about 5 bytes a token besides the table, lists of integers 30.
    column = table.with_format("arrow")["input_ids"][:]
    tokens: TokenIds = pc.list_flatten(column).to_numpy().astype(np.int32, copy=False)
    if end is None:
        return tokens
    lengths = pc.list_value_length(column).to_numpy()
    stops = lengths.cumsum()
    is_closed = lengths > 0
    is_closed[is_closed] = tokens[stops[is_closed] - 1] == end
    is_closed[-1] = True
    return np.insert(tokens, stops[~is_closed], end)
