"""One number for a text or for a pair of texts."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from datasets import DatasetDict, Value
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
from gating.data.text.tokenizers import load_or_train_tokenizer
from gating.data.text.tokens import check_texts, tokenize_labeled, truncation_length
from gating.errors import InputError
from gating.models.sources import ModelSource
from gating.models.special_tokens import special_token_ids
from gating.tasks.base import Prepared
from gating.tasks.metrics.numbers import number_metrics

__all__ = ["Regression", "encode_numbers"]

_NUMBER_COLUMNS = ("label", "labels", "score", "similarity_score", "rating")


class Regression:
    """One number for a text or for a pair of texts."""

    auto_class = AutoModelForSequenceClassification

    def __init__(self, metrics: Sequence[str] | None = None) -> None:
        """Choose the metrics, the one to report first: ``pearson``, ``spearman``, ``mse``, ``mae``."""
        self._metrics = metrics

    def load_processor(
        self, source: ModelSource, blueprint: PreTrainedModel, splits: DatasetDict
    ) -> PreTrainedTokenizerBase:
        """Load the tokenizer, or learn one for a new model."""
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
        """Tokenize texts and read numbers.

        Args:
            examples: The data.
            processor: The model's tokenizer.
            blueprint: The model without its weights.
            max_length: Number of tokens after which an example is cut off.
            text_column: Column of the text.
            text_pair_column: Column of the second text, where examples are pairs.
            label_column: Column of the number.
        """
        texts = find_text_columns(examples.splits, text_column, text_pair_column)
        label = find_column(examples.splits, label_column, _NUMBER_COLUMNS)
        splits = encode_numbers(take_columns(examples.splits, {**texts, "label": label}))
        check_texts(splits, list(texts))
        metrics, score = number_metrics(self._metrics or examples.metrics or ("pearson", "spearman"))
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
                # Decoders find the end of a text by it.
                "pad_token_id": processor.pad_token_id,
            },
        )

    def update(
        self, metrics: MetricCollection, batch: Batch, *, outputs: Mapping[str, Any], model: PreTrainedModel
    ) -> None:
        """Compare the only logit with the number."""
        metrics.update(outputs["logits"].float().squeeze(-1), batch["labels"].float())


# What a float32 holds.
_MOST = 3e38


def encode_numbers(splits: DatasetDict) -> DatasetDict:
    """Read the column ``label`` of every split as numbers.

    Raises:
        ValueError: A label is missing, or is no number.
    """
    encoded = {}
    for split, table in splits.items():
        # Class numbers are names, not quantities.
        classes = getattr(table.features["label"], "names", None)
        numbers = []
        for row, label in enumerate(table["label"][:]):
            shown = classes[label] if classes and label is not None and label >= 0 else label
            numbers.append(_number(shown))
            if not abs(numbers[-1]) < _MOST:
                raise InputError(
                    f"The {split} data has the label {shown!r} in row {row + 1}, which is no number. Correct the row, "
                    "or learn classes with task=sequence_classification."
                )
        encoded[split] = table.remove_columns("label").add_column("label", numbers, feature=Value("float32"))
    return DatasetDict(encoded)


def _number(label: object) -> float:
    try:
        return float(label)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return math.nan
