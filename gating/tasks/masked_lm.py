"""Masked language modeling, for BERT, RoBERTa and other encoders."""

import zlib
from collections.abc import Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor
from transformers import AutoModelForMaskedLM, DataCollatorForLanguageModeling, PreTrainedTokenizerBase

from gating.tasks.blocks import BlockTask

__all__ = ["MaskedLM"]


class MaskedLM(BlockTask):
    """Prediction of masked tokens, in blocks of text."""

    auto_class = AutoModelForMaskedLM
    with_ends, shift = False, 0

    def __init__(
        self,
        hidden: Annotated[float, Field(gt=0, lt=1)] = 0.15,
        metrics: Sequence[str] | None = None,
        score: str | None = None,
    ) -> None:
        """Store the share of tokens to mask, and the metrics."""
        super().__init__(metrics, score)
        self._hidden = hidden

    def collator(self, processor: PreTrainedTokenizerBase) -> "_MaskingCollator":
        """Return the function that masks tokens and pads blocks."""
        return _MaskingCollator(processor, hidden=self._hidden)


class _MaskingCollator:
    """Collator whose random masks depend on the content of the batch alone.

    Each validation uses the same masks, and a resumed run the same as an uninterrupted one. In training, batches and so
    masks differ in every epoch.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, hidden: float) -> None:
        self._collate = DataCollatorForLanguageModeling(tokenizer, mlm_probability=hidden)

    def __call__(self, blocks: list[dict[str, Any]]) -> dict[str, Tensor]:
        seed = zlib.crc32(repr([list(block["input_ids"]) for block in blocks]).encode())
        self._collate.generator = torch.Generator().manual_seed(seed)
        batch = dict(self._collate([{"input_ids": block["input_ids"]} for block in blocks]))
        if (batch["labels"] == -100).all():
            # The loss over no targets would be NaN: the first word is masked.
            tokenizer = self._collate.tokenizer
            is_word = ~torch.isin(batch["input_ids"], torch.tensor(tokenizer.all_special_ids))
            for row, place in is_word.nonzero()[:1].tolist():
                batch["labels"][row, place] = batch["input_ids"][row, place]
                batch["input_ids"][row, place] = tokenizer.mask_token_id
        return batch
