"""Token classification: a tag for every word, such as named entities or parts of speech."""

from collections.abc import Mapping, Sequence
from typing import Any

from datasets import DatasetDict
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy
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
from gating.errors import InputError
from gating.models.sources import ModelSource
from gating.models.special_tokens import special_token_ids
from gating.report.score import Score
from gating.tasks.base import Prepared
from gating.tasks.metrics.classes import class_config
from gating.tasks.metrics.spans import SpanScore
from gating.tasks.tags import encode_tags, mark_spans

__all__ = ["TokenClassification"]

_WORD_COLUMNS = ("tokens", "words", "text")
_TAG_COLUMNS = ("ner_tags", "tags", "label", "labels", "pos_tags")
_SPANS = ("f1", "precision", "recall")


class TokenClassification:
    """Classification of the words of a text."""

    auto_class = AutoModelForTokenClassification

    def __init__(self, metrics: Sequence[str] | None = None) -> None:
        """Store the metrics.

        Args:
            metrics: Of ``f1``, ``precision`` and ``recall`` of spans and ``accuracy`` of words, the first to report. If
                None, those of the data; or those of spans if tags mark spans, else accuracy.
        """
        self._metrics = metrics

    def load_processor(
        self, source: ModelSource, blueprint: PreTrainedModel, splits: DatasetDict
    ) -> PreTrainedTokenizerBase:
        """Load a tokenizer that tokenizes every word as if it followed a space.

        Raises:
            ValueError: The tokenizer does not map tokens to words.
        """
        return require_offsets(load_tokenizer(source, after_space=True), "task=token_classification")

    def prepare(
        self,
        examples: Examples,
        processor: PreTrainedTokenizerBase,
        blueprint: PreTrainedModel,
        *,
        max_length: int = 128,
        text_column: str | None = None,
        label_column: str | None = None,
    ) -> Prepared:
        """Tokenize words; the first token of each word has its tag as label.

        Args:
            examples: The data.
            processor: The model's tokenizer.
            blueprint: The model without weights.
            max_length: Number of tokens in an example; longer texts become several examples.
            text_column: Column of the words: lists, or strings with spaces.
            label_column: Column of the tags: lists, or strings with spaces.

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
        names = self._metrics or examples.metrics or (_SPANS if mark_spans(tag_names) else ("accuracy",))
        return Prepared(
            splits=_tokenize_words(splits, processor, truncation_length(blueprint, max_length)),
            collate=DataCollatorForTokenClassification(processor),
            metrics=MetricCollection({name: _metric(name, tag_names) for name in names}),
            score=Score(names[0]),
            config={**class_config(tag_names), **special_token_ids(processor, blueprint.config)},
        )

    def update(
        self, metrics: MetricCollection, batch: Batch, *, outputs: Mapping[str, Any], model: PreTrainedModel
    ) -> None:
        """Compare the tag with the largest logit to the label, at the first token of each word."""
        metrics.update(outputs["logits"].argmax(-1), batch["labels"])


def _metric(name: str, tag_names: list[str]) -> Metric:
    if name == "accuracy":
        return MulticlassAccuracy(len(tag_names), average="micro", ignore_index=-100)
    if name not in _SPANS:
        raise InputError(f"task.metrics: tags have no metric {name!r}; choose from {', '.join(_SPANS)}, accuracy.")
    if not mark_spans(tag_names):
        raise InputError(
            f"task.metrics: {name} counts spans, which tags mark as B-TYPE, I-TYPE and O, but these are "
            f"{', '.join(tag_names[:5])}. Take task.metrics=[accuracy]."
        )
    return SpanScore(tag_names, kind=name)  # type: ignore[arg-type]


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

    return tokenize(splits, tokenize_batch)
