"""Refusal of tokenizers that cannot be those of a model: made up for missing files, or of other texts."""

from typing import Any

import torch
from torch import Tensor

from gating.errors import InputError

# Larger shares of unknown tokens leave nothing to learn from.
_MOST_UNKNOWN = 1 / 3
# Special tokens alone are never so many.
_FEW = 1000
_SETTING = " (in a command: model.tokenizer=FOLDER_OR_HUB_NAME)"


def check_vocabulary(tokenizer: Any, *, name: str) -> None:
    """Raise ``InputError`` for a tokenizer, or a processor with one, of special tokens alone; others pass.

    transformers makes up such a one for a folder without the files of a tokenizer.
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


def check_known(tokenizer: Any, ids: Tensor, *, name: str) -> None:
    """Raise ``InputError`` for a tokenizer to which over a third of the tokens of texts, ``[num_tokens]``, are unknown.

    Special tokens are not counted.
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
