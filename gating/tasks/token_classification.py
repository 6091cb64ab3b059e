"""Token classification: a tag for every word, such as named entities or parts of speech."""

from collections.abc import Mapping
from typing import Any

from datasets import DatasetDict
from torch import Tensor
from torchmetrics import MetricCollection
from transformers import (
    AutoModelForTokenClassification,
    DataCollatorForTokenClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from gating.data.batches import Batch
from gating.data.columns import find_column, take_columns
from gating.data.examples import Examples
from gating.data.text.tokens import check_no_nulls, load_tokenizer, require_offsets, tokenize, truncation_length
from gating.models.sources import ModelSource
from gating.models.special_tokens import special_token_ids
from gating.tasks.base import MetricTask, Prepared
from gating.tasks.metrics.baselines import Baseline, log_frequencies
from gating.tasks.metrics.classes import class_config
from gating.tasks.metrics.tags import build_tag_metrics, choose_tag_metrics
from gating.tasks.tags import encode_tags, mark_spans

__all__ = ["TokenClassification"]

_WORD_COLUMNS = ("tokens", "words", "text")
_TAG_COLUMNS = ("ner_tags", "tags", "label", "labels", "pos_tags")


class TokenClassification(MetricTask):
    """Classification of the words of a text.

    Its metrics are ``f1``, ``precision`` and ``recall`` of spans, ``accuracy`` and ``macro_f1`` of words; by default
    those of spans if tags mark spans, else accuracy.
    """

    auto_class = AutoModelForTokenClassification
    choose_metrics = staticmethod(choose_tag_metrics)

    def load_processor(
        self, source: ModelSource, meta_model: PreTrainedModel, splits: DatasetDict
    ) -> PreTrainedTokenizerBase:
        """Load a tokenizer that tokenizes every word as if it followed a space.

        Raises:
            ValueError: The tokenizer does not map tokens to words.
        """
        tokenizer = load_tokenizer(source, after_space=True, meta_model=meta_model)
        return require_offsets(tokenizer, "task=token_classification")

    def prepare(
        self,
        examples: Examples,
        processor: PreTrainedTokenizerBase,
        meta_model: PreTrainedModel,
        *,
        max_length: int = 128,
        text_column: str | None = None,
        label_column: str | None = None,
    ) -> Prepared:
        """Tokenize words; the first token of each word has its tag as label.

        Words and tags are lists, or strings with spaces. Texts of more than ``max_length`` tokens become several
        examples.

        Raises:
            ValueError: A column is missing, or words or tags cannot be used.
        """
        columns = {
            "text": find_column(examples.splits, text_column, _WORD_COLUMNS),
            "label": find_column(examples.splits, label_column, _TAG_COLUMNS),
        }
        taken = take_columns(examples.splits, columns)
        check_no_nulls(taken, list(columns))
        splits, tag_names = encode_tags(taken)
        metrics, score = build_tag_metrics(
            self._metrics, examples.metrics, tag_names=tag_names, mark_spans=mark_spans(tag_names)
        )
        return Prepared(
            splits=_tokenize_words(splits, processor, truncation_length(meta_model, max_length)),
            collate=DataCollatorForTokenClassification(processor),
            metrics=metrics,
            score=score,
            config={**class_config(tag_names), **special_token_ids(processor, meta_model.config)},
            baseline=Baseline(
                "majority tag", lambda: log_frequencies(splits["train"], "tags", size=len(tag_names)), _add_majority
            ),
        )

    def update(
        self, metrics: MetricCollection, batch: Batch, *, outputs: Mapping[str, Any], model: PreTrainedModel
    ) -> None:
        """Compare the tag with the largest logit to the label, at the first token of each word."""
        metrics.update(outputs["logits"].argmax(-1), batch["labels"])


def _add_majority(metrics: MetricCollection, logits: Tensor, batch: Batch) -> None:
    """Update metrics with the most frequent tag at each token."""
    metrics.update(logits.argmax().expand(batch["labels"].shape), batch["labels"])


def _tokenize_words(splits: DatasetDict, tokenizer: PreTrainedTokenizerBase, max_length: int) -> DatasetDict:
    def tokenize_batch(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        tokens = tokenizer(
            batch["words"],
            is_split_into_words=True,
            truncation=True,
            max_length=max_length,
            # Every word counts in training and in the metrics.
            return_overflowing_tokens=True,
        )
        rows = tokens.pop("overflow_to_sample_mapping")
        labels, seen = [], (-1, -1)
        for window, row in enumerate(rows):
            targets = []
            for word in tokens.word_ids(window):
                is_first = word is not None and (row, word) > seen
                targets.append(batch["tags"][row][word] if is_first else -100)
                seen = max(seen, (row, word)) if word is not None else seen
            labels.append(targets)
        return {**tokens, "labels": labels}

    return tokenize(splits, tokenize_batch, tokenizer=tokenizer)
