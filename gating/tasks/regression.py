"""Regression: one number for a text or text pair."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from datasets import DatasetDict, Value
from torch import Tensor
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
from gating.data.rows import name_row
from gating.data.text.tokenizers import load_or_train_tokenizer
from gating.data.text.tokens import check_texts, tokenize_labeled, truncation_length
from gating.errors import InputError
from gating.models.sources import ModelSource
from gating.models.special_tokens import special_token_ids
from gating.tasks.base import Prepared
from gating.tasks.metrics.baselines import Baseline, column_mean
from gating.tasks.metrics.numbers import build_number_metrics, choose_number_metrics, correlations_in

__all__ = ["Regression", "encode_numbers"]

# Just below the largest float32.
_MAX = 3e38

_NUMBER_COLUMNS = ("label", "labels", "score", "similarity_score", "rating")


class Regression:
    """Regression of a number from texts or text pairs."""

    auto_class = AutoModelForSequenceClassification

    def __init__(self, metrics: Sequence[Any] | Mapping[str, Any] | None = None, score: str | None = None) -> None:
        """Store the metrics.

        Args:
            metrics: Names of :func:`gating.tasks.metrics.numbers.number_metrics`, or metrics, or their classes by name;
                those of the data, or the two correlations, if None.
            score: Name of the metric by which runs are compared; the first if None.

        Raises:
            InputError: A name is unknown, or a metric cannot be created.
        """
        self._metrics = choose_number_metrics(metrics, score)

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
        """Tokenize texts and convert labels to numbers.

        Raises:
            ValueError: A column is missing, or texts or numbers cannot be used.
        """
        texts = find_text_columns(examples.splits, text_column, text_pair_column)
        label = find_column(examples.splits, label_column, _NUMBER_COLUMNS)
        splits = encode_numbers(take_columns(examples.splits, {**texts, "label": label}))
        check_texts(splits, list(texts))
        metrics, score = build_number_metrics(self._metrics, examples.metrics or ("pearson", "spearman"))
        length = truncation_length(blueprint, max_length)
        return Prepared(
            splits=tokenize_labeled(splits, processor, list(texts), length),
            collate=DataCollatorWithPadding(processor),
            metrics=metrics,
            score=score,
            config={
                "num_labels": 1,
                "problem_type": "regression",
                **special_token_ids(processor, blueprint.config),
                # Decoders locate the last token of a text by the padding.
                "pad_token_id": processor.pad_token_id,
            },
            # A constant follows no label.
            baseline=Baseline(
                "mean label",
                column_mean(splits["train"], "label"),
                _add_mean,
                dict.fromkeys(correlations_in(metrics), 0.0),
            ),
        )

    def update(
        self, metrics: MetricCollection, batch: Batch, *, outputs: Mapping[str, Any], model: PreTrainedModel
    ) -> None:
        """Compare the logit to the label."""
        metrics.update(outputs["logits"].float().squeeze(-1), batch["labels"].float())


def _add_mean(metrics: MetricCollection, mean: Tensor, batch: Batch) -> None:
    """Update metrics with the mean of the training labels for each example."""
    labels = batch["labels"].float()
    metrics.update(mean.expand_as(labels), labels)


def encode_numbers(splits: DatasetDict) -> DatasetDict:
    """Convert the column ``label`` of every split to float32.

    Example:
        >>> from datasets import Dataset
        >>> rows = Dataset.from_dict({"text": ["a", "b"], "label": ["1.5", "2"]})
        >>> encode_numbers(DatasetDict(train=rows))["train"]["label"][:]
        [1.5, 2.0]

    Raises:
        ValueError: A label is missing, a class name, or not a finite number.
    """
    encoded = {}
    for split, table in splits.items():
        # Numbers of classes stand for names, not quantities.
        classes = getattr(table.features["label"], "names", None)
        numbers = []
        for row, label in enumerate(table["label"][:]):
            shown = classes[label] if classes and label is not None and label >= 0 else label
            numbers.append(_number(shown))
            if not abs(numbers[-1]) < _MAX:
                raise InputError(
                    f"The {split} data has the label {shown!r} in {name_row(split, row)}, which is not a "
                    "number. Correct the row, or learn classes with task=sequence_classification."
                )
        encoded[split] = table.remove_columns("label").add_column("label", numbers, feature=Value("float32"))
    return DatasetDict(encoded)


def _number(label: object) -> float:
    try:
        return float(label)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return math.nan
