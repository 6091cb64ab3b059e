"""Parts of language models of blocks of text, masked or causal."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar

from torch import Tensor
from torchmetrics import MetricCollection
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gating.data.batches import Batch
from gating.data.columns import find_column, take_columns
from gating.data.examples import Examples
from gating.data.text.token_blocks import cut_into_blocks
from gating.data.text.tokens import check_texts, truncation_length
from gating.errors import InputError
from gating.models.special_tokens import special_token_ids
from gating.tasks.base import Prepared, TextTask
from gating.tasks.metrics.baselines import Baseline, log_frequencies
from gating.tasks.metrics.tokens import (
    build_token_metrics,
    choose_token_metrics,
    update_token_baseline,
    update_token_metrics,
)

__all__ = ["BlockTask"]

# Usual names of the column of texts, in order of precedence.
_TEXT_COLUMNS = ("text", "content", "sentence", "document")


class BlockTask(TextTask):
    """Base of language models of blocks of text.

    Its metrics are ``perplexity`` and ``accuracy``, by default both.

    Attributes:
        with_ends: Whether blocks have the tokens between texts.
        shift: Number of positions from a logit to the token that it predicts.
    """

    with_ends: ClassVar[bool]
    shift: ClassVar[int]
    choose_metrics = staticmethod(choose_token_metrics)

    def collator(self, processor: PreTrainedTokenizerBase) -> Callable[[list[Any]], Batch]:
        """Return the function that collates blocks into a batch with labels."""
        raise NotImplementedError

    def check_settings(self, processor: PreTrainedTokenizerBase) -> None:
        """Raise ``InputError`` for settings of the task that do not fit the tokenizer."""

    def uncounted(self, processor: PreTrainedTokenizerBase, vocab_size: int) -> tuple[int, ...]:
        """Return the tokens that are never targets, which the baseline leaves out."""
        return ()

    def config(self, meta_model: PreTrainedModel) -> dict[str, Any]:
        """Return values of the configuration, beside those of special tokens."""
        return {}

    def prepare(
        self,
        examples: Examples,
        processor: PreTrainedTokenizerBase,
        meta_model: PreTrainedModel,
        *,
        max_length: int = 128,
        text_column: str | None = None,
    ) -> Prepared:
        """Tokenize texts into blocks of ``max_length`` tokens, whose labels are made when batches are collated.

        Raises:
            ValueError: There is no room for a text, or the texts cannot be used.
        """
        self.check_settings(processor)
        if max_length == 1:
            raise InputError(
                f"data.max_length={max_length} leaves no room for a text: language models predict a token from "
                "others. Give at least 2, such as 128."
            )
        column = find_column(examples.splits, text_column, _TEXT_COLUMNS)
        texts = take_columns(examples.splits, {"text": column})
        check_texts(texts, ["text"])
        length = truncation_length(meta_model, max_length)
        blocks = cut_into_blocks(texts, processor, length=length, with_ends=self.with_ends)
        vocab_size = meta_model.config.get_text_config().vocab_size
        metrics, score = build_token_metrics(self._metrics, vocab_size=vocab_size)
        without = self.uncounted(processor, vocab_size)
        return Prepared(
            splits=blocks,
            collate=self.collator(processor),
            metrics=metrics,
            score=score,
            config={**special_token_ids(processor, meta_model.config), **self.config(meta_model)},
            baseline=Baseline(
                "frequencies of tokens",
                lambda: log_frequencies(blocks["train"], "input_ids", size=vocab_size, without=without),
                partial(_add_unigram, shift=self.shift),
            ),
        )

    def update(
        self, metrics: MetricCollection, batch: Batch, *, outputs: Mapping[str, Any], model: PreTrainedModel
    ) -> None:
        """Compare the logits at each position with the token that they predict."""
        labels = batch["labels"][:, self.shift :]
        update_token_metrics(metrics, outputs["logits"][:, : labels.shape[1]], labels)


def _add_unigram(metrics: MetricCollection, logits: Tensor, batch: Batch, *, shift: int) -> None:
    update_token_baseline(metrics, logits, batch["labels"][:, shift:])
