"""Parts of tasks with one label for an example: encoded labels, and texts or text pairs with them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from datasets import DatasetDict
from torchmetrics import MetricCollection
from transformers import (
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from gating.data.columns import find_column, find_text_columns, take_columns
from gating.data.examples import Examples
from gating.data.labels import LABEL_COLUMNS, encode_labels
from gating.data.text.tokens import check_texts, tokenize_labeled, truncation_length
from gating.models.special_tokens import special_token_ids
from gating.report.score import Score
from gating.tasks.base import Prepared, TextTask
from gating.tasks.metrics.baselines import Baseline, constant_logits, log_frequencies
from gating.tasks.metrics.choice import ChosenMetrics
from gating.tasks.metrics.classes import build_class_metrics, class_config

__all__ = ["Labeled", "LabeledTexts", "encode_classes"]


class Labeled(NamedTuple):
    """Splits whose column ``label`` has numbers, and the parts of :class:`~gating.tasks.base.Prepared` that follow."""

    splits: DatasetDict
    metrics: MetricCollection
    score: Score
    config: dict[str, Any]
    baseline: Baseline


def encode_classes(taken: DatasetDict, chosen: ChosenMetrics, default: Sequence[str]) -> tuple[Labeled, list[str]]:
    """Encode the column ``label`` as classes; ``default`` are names of the metrics of the data, if it has some.

    Returns:
        The encoded data, and the names of the classes.

    Raises:
        ValueError: The labels cannot be used, or the metrics do not fit them.
    """
    splits, names = encode_labels(taken)
    metrics, score = build_class_metrics(chosen, default or ("accuracy",), num_classes=len(names))
    config = {**class_config(names), "problem_type": "single_label_classification"}
    frequencies = log_frequencies(splits["train"], "label", size=len(names))
    return Labeled(splits, metrics, score, config, Baseline("majority class", frequencies, constant_logits)), names


class LabeledTexts(TextTask):
    """Base of tasks with one label for a text or text pair.

    Attributes:
        label_columns: Usual names of the column of labels, in order of precedence.
    """

    auto_class = AutoModelForSequenceClassification
    label_columns: tuple[str, ...] = LABEL_COLUMNS

    def encode(self, taken: DatasetDict, default: Sequence[str]) -> Labeled:
        """Encode the column ``label``; ``default`` are names of the metrics of the data, if it has some."""
        raise NotImplementedError

    def prepare(
        self,
        examples: Examples,
        processor: PreTrainedTokenizerBase,
        meta_model: PreTrainedModel,
        *,
        max_length: int = 128,
        text_column: str | None = None,
        text_pair_column: str | None = None,
        label_column: str | None = None,
    ) -> Prepared:
        """Tokenize texts and encode labels.

        Args:
            examples: The data.
            processor: The model's tokenizer.
            meta_model: The model without weights.
            max_length: Number of tokens to truncate examples to.
            text_column: Column of the texts; found by its name if None, as the others.
            text_pair_column: Column of the second texts of pairs.
            label_column: Column of the labels.

        Raises:
            ValueError: A column is missing, or texts or labels cannot be used.
        """
        texts = find_text_columns(examples.splits, text_column, text_pair_column)
        label = find_column(examples.splits, label_column, self.label_columns)
        labeled = self.encode(take_columns(examples.splits, {**texts, "label": label}), examples.metrics)
        check_texts(labeled.splits, list(texts))
        length = truncation_length(meta_model, max_length)
        return Prepared(
            splits=tokenize_labeled(labeled.splits, processor, list(texts), length),
            collate=DataCollatorWithPadding(processor),
            metrics=labeled.metrics,
            score=labeled.score,
            config={
                **labeled.config,
                **special_token_ids(processor, meta_model.config),
                # Decoders locate the last token of a text by the padding.
                "pad_token_id": processor.pad_token_id,
            },
            baseline=labeled.baseline,
        )
