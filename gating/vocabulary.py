"""Refusal of tokenizers that cannot be those of a model: made up for missing files, or of other texts."""

from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from gating.errors import InputError

__all__ = ["check_known", "check_vocabulary", "vocabulary_size"]

# Larger shares of unknown tokens leave nothing to learn from.
_MOST_UNKNOWN = 1 / 3
# A vocabulary this many times smaller than the embedding must at least have all letters and digits.
_FAR_SMALLER = 100
# Special tokens alone are never so many.
_FEW = 1000
_SETTING = " (in a command: model.tokenizer=FOLDER_OR_HUB_NAME)"
_LETTERS = "a b c d e f g h i j k l m n o p q r s t u v w x y z 0 1 2 3 4 5 6 7 8 9"


def vocabulary_size(model: PreTrainedModel) -> int | None:
    """Return the number of tokens of a model: rows of its embedding, else the setting; None if it has none."""
    with suppress(NotImplementedError, AttributeError):
        rows = getattr(model.get_input_embeddings(), "num_embeddings", None)
        if isinstance(rows, int):
            return rows
    try:
        size = getattr(model.config.get_text_config(), "vocab_size", None)
    except ValueError:  # It has several parts for texts.
        return None
    return size if isinstance(size, int) else None


def check_vocabulary(tokenizer: Any, *, size: int | None, name: str) -> None:
    """Check that a tokenizer has tokens, and not far fewer than its model.

    transformers makes up a tokenizer of special tokens alone for a folder without the files of one. Padded embeddings,
    bytes and characters as tokens, and small vocabularies pass.

    Args:
        tokenizer: A tokenizer, or a processor with one; others pass.
        size: Number of tokens of the model; None if it is unknown or was not learned with a tokenizer.
        name: Where the tokenizer comes from, for the message.

    Raises:
        InputError: It has special tokens alone, or it knows few of the letters and is far too small.
    """
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
    if not hasattr(tokenizer, "all_special_ids") or not callable(tokenizer):
        return
    number = len(tokenizer)
    # The only other token of those made up is the mark of a space. Of many, not all can be special.
    if number < _FEW and len(set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens)) < 2:
        raise InputError(
            f"The tokenizer of {name} has no tokens for texts, only {number} special ones: its files, such as "
            f"tokenizer.json, are missing or empty. Save the right one there{_SETTING}."
        )
    if size is None or number * _FAR_SMALLER >= size:
        return
    share = _unknown_share(tokenizer, torch.tensor(tokenizer(_LETTERS)["input_ids"], dtype=torch.int64))
    if share is None or share > _MOST_UNKNOWN:
        raise InputError(
            f"The tokenizer of {name} has {number} tokens, and the model {size}: it is not the model's. Load the right "
            f"one{_SETTING}."
        )


def check_known(tokenizer: Any, ids: Tensor, *, name: str) -> None:
    """Check that a tokenizer knows most of the texts that it has encoded.

    Args:
        tokenizer: The tokenizer.
        ids: Tokens of the texts, ``[num_tokens]``.
        name: Name of the texts, for the message.

    Raises:
        InputError: More than a third of the tokens are unknown; special tokens are not counted.
    """
    share = _unknown_share(tokenizer, ids)
    if share is not None and share > _MOST_UNKNOWN:
        raise InputError(
            f"The tokenizer ({type(tokenizer).__name__}, {len(tokenizer)} tokens) does not know {share:.0%} of the "
            f"tokens of the {name}, which become {tokenizer.unk_token}: it is not made for such texts. Take a model of "
            f"their language, or its own tokenizer{_SETTING}, and check the column of the texts."
        )


def _unknown_share(tokenizer: Any, ids: Tensor) -> float | None:
    """Return the share of unknown tokens among those that are not special; None if there are no others."""
    unknown = tokenizer.unk_token_id
    uses = ("bos_token_id", "eos_token_id", "pad_token_id", "cls_token_id", "sep_token_id", "mask_token_id")
    if unknown is not None and unknown in [getattr(tokenizer, use, None) for use in uses]:
        unknown = None  # Such as GPT-2's, which knows all bytes: the same token ends texts.
    special = torch.tensor([number for number in tokenizer.all_special_ids if number != unknown], dtype=ids.dtype)
    counted = ids[~torch.isin(ids, special)]
    if not len(counted):
        return None
    return 0.0 if unknown is None else float((counted == unknown).float().mean())
