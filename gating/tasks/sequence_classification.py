"""Sequence classification: one label for a text or text pair."""

from collections.abc import Mapping, Sequence
from typing import Any

from datasets import DatasetDict
from torchmetrics import MetricCollection
from transformers import (
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from gating.data.batches import Batch
from gating.data.columns import find_column, find_text_columns, take_columns
from gating.data.examples import Examples
from gating.data.labels import LABEL_COLUMNS, encode_labels, hint_at_regression
from gating.data.text.tokenizers import load_or_train_tokenizer
from gating.data.text.tokens import check_texts, tokenize_labeled, truncation_length
from gating.models.sources import ModelSource
from gating.models.special_tokens import special_token_ids
from gating.tasks.base import Prepared
from gating.tasks.metrics.baselines import Baseline, constant_logits, log_frequencies
from gating.tasks.metrics.classes import build_class_metrics, choose_class_metrics, class_config

__all__ = ["SequenceClassification"]


class SequenceClassification:
    """Classification of texts or text pairs."""

    auto_class = AutoModelForSequenceClassification
    has_classes = True

    def __init__(self, metrics: Sequence[Any] | Mapping[str, Any] | None = None, score: str | None = None) -> None:
        """Store the metrics.

        Args:
            metrics: Names of :func:`gating.tasks.metrics.classes.class_metrics`, or metrics, or their classes by name;
                those of the data, or accuracy, if None.
            score: Name of the metric by which runs are compared; the first if None.

        Raises:
            InputError: A name is unknown, or a metric cannot be created.
        """
        self._metrics = choose_class_metrics(metrics, score)

    def load_processor(
        self, source: ModelSource, blueprint: PreTrainedModel, splits: DatasetDict
    ) -> PreTrainedTokenizerBase:
        """Load the tokenizer, or train one for a new model."""
        return load_or_train_tokenizer(source, blueprint, splits, frame="both")

    def prepare(
        self,
        examples: Examples,
        processor: PreTrainedTokenizerBase,
        blueprint: PreTrainedModel,
        *,
        max_length: int = 128,
        text_column: str | None = None,
        text_pair_column: str | None = None,
        label_column: str | None = None,
    ) -> Prepared:
        """Tokenize texts and encode labels.

        Raises:
            ValueError: A column is missing, or texts or labels cannot be used.
        """
        texts = find_text_columns(examples.splits, text_column, text_pair_column)
        label = find_column(examples.splits, label_column, LABEL_COLUMNS)
        taken = take_columns(examples.splits, {**texts, "label": label})
        splits, label_names = encode_labels(taken)
        hint_at_regression(taken, label_names)
        check_texts(splits, list(texts))
        length = truncation_length(blueprint, max_length)
        metrics, score = build_class_metrics(
            self._metrics, examples.metrics or ("accuracy",), num_classes=len(label_names)
        )
        return Prepared(
            splits=tokenize_labeled(splits, processor, list(texts), length),
            collate=DataCollatorWithPadding(processor),
            metrics=metrics,
            score=score,
            config={
                **class_config(label_names),
                **special_token_ids(processor, blueprint.config),
                "problem_type": "single_label_classification",
                # Decoders locate the last token of a text by the padding.
                "pad_token_id": processor.pad_token_id,
            },
            baseline=Baseline(
                "majority class", log_frequencies(splits["train"], "label", size=len(label_names)), constant_logits
            ),
        )

    def update(
        self, metrics: MetricCollection, batch: Batch, *, outputs: Mapping[str, Any], model: PreTrainedModel
    ) -> None:
        """Compare the class with the largest logit to the label."""
        metrics.update(outputs["logits"].float(), batch["labels"])
