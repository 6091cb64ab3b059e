"""Masked language modeling, for BERT, RoBERTa and other encoders."""

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from datasets import DatasetDict
from torch import Tensor
from torchmetrics import MetricCollection
from transformers import (
    AutoModelForMaskedLM,
    DataCollatorForLanguageModeling,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from gating.data.batches import Batch
from gating.data.examples import Examples
from gating.data.text.token_blocks import read_blocks
from gating.data.text.tokenizers import load_or_train_tokenizer
from gating.errors import InputError
from gating.models.sources import ModelSource
from gating.models.special_tokens import special_token_ids
from gating.tasks.base import Prepared, check_block_length
from gating.tasks.metrics.baselines import Baseline, log_frequencies
from gating.tasks.metrics.tokens import (
    build_token_metrics,
    choose_token_metrics,
    update_token_baseline,
    update_token_metrics,
)

__all__ = ["MaskedLM"]


class MaskedLM:
    """Prediction of masked tokens, in blocks of text."""

    auto_class = AutoModelForMaskedLM

    def __init__(
        self,
        hidden: float = 0.15,
        metrics: Sequence[Any] | Mapping[str, Any] | None = None,
        score: str | None = None,
    ) -> None:
        """Store the share of tokens to mask, and the metrics.

        Args:
            hidden: Probability that a token is masked.
            metrics: ``perplexity``, ``accuracy``, or metrics, or classes of metrics by name; these two if None.
            score: Name of the metric by which runs are compared; the first if None.

        Raises:
            ValueError: The probability is not between 0 and 1.
        """
        if not 0 < hidden < 1:
            raise InputError(f"task.hidden must be a number between 0 and 1, such as .15, got task.hidden={hidden}.")
        self._hidden = hidden
        self._metrics = choose_token_metrics(metrics, score)

    def load_processor(
        self, source: ModelSource, blueprint: PreTrainedModel, splits: DatasetDict
    ) -> PreTrainedTokenizerBase:
        """Load the tokenizer, or train one for a new model.

        Raises:
            ValueError: The tokenizer has no mask token.
        """
        tokenizer = load_or_train_tokenizer(source, blueprint, splits, frame="both")
        if tokenizer.mask_token is None:
            raise InputError(
                f"The tokenizer of {source.title} has no mask token, which task=masked_lm needs: take a "
                "model that was pretrained with masks, or task=causal_lm."
            )
        return tokenizer

    def prepare(
        self,
        examples: Examples,
        processor: PreTrainedTokenizerBase,
        blueprint: PreTrainedModel,
        *,
        max_length: int = 128,
        text_column: str | None = None,
    ) -> Prepared:
        """Tokenize texts into blocks; tokens are masked when batches are collated.

        Raises:
            ValueError: There is no room for a text, or the texts cannot be used.
        """
        check_block_length(max_length)
        blocks = read_blocks(
            examples, processor, blueprint, max_length=max_length, text_column=text_column, with_ends=False
        )
        vocab_size = blueprint.config.vocab_size
        metrics, score = build_token_metrics(self._metrics, vocab_size=vocab_size)
        # Special tokens are never masked.
        special = tuple(number for number in processor.all_special_ids if number < vocab_size)
        frequencies = log_frequencies(blocks["train"], "input_ids", size=vocab_size, without=special)
        return Prepared(
            splits=blocks,
            collate=_MaskingCollator(processor, hidden=self._hidden),
            metrics=metrics,
            score=score,
            config=special_token_ids(processor, blueprint.config),
            baseline=Baseline("frequencies of tokens", frequencies, _add_unigram),
        )

    def update(
        self, metrics: MetricCollection, batch: Batch, *, outputs: Mapping[str, Any], model: PreTrainedModel
    ) -> None:
        """Compare the logits at each masked position with the original token."""
        update_token_metrics(metrics, outputs["logits"], batch["labels"])


def _add_unigram(metrics: MetricCollection, logits: Tensor, batch: Batch) -> None:
    update_token_baseline(metrics, logits, batch["labels"])


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
            # The loss over no targets would be NaN.
            self._mask_one(batch)
        return batch

    def _mask_one(self, batch: dict[str, Tensor]) -> None:
        tokenizer = self._collate.tokenizer
        is_word = ~torch.isin(batch["input_ids"], torch.tensor(tokenizer.all_special_ids))
        if is_word.any():
            row, place = is_word.nonzero()[0].tolist()
            batch["labels"][row, place] = batch["input_ids"][row, place]
            batch["input_ids"][row, place] = tokenizer.mask_token_id
