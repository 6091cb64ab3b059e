"""Sequence classification and regression, and parts of other tasks with one label for an example or with classes."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from datasets import DatasetDict, Value
from torchmetrics import MetricCollection
from transformers import (
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from gating.data.columns import find_column, find_text_columns, take_columns
from gating.data.examples import Batch, Examples
from gating.data.labels import LABEL_COLUMNS, encode_labels, read_numbers
from gating.data.tokens import check_texts, special_token_ids, tokenize_labeled, truncation_length
from gating.tasks.base import Baseline, MetricTask, Prepared, TextTask
from gating.tasks.metrics.labels import (
    CLASS_METRICS,
    NUMBER_METRICS,
    PRECISION,
    build_class_metrics,
    build_number_metrics,
    class_config,
    log_frequencies,
)


class ClassTask(MetricTask):
    """Base of tasks whose labels are classes, with the metrics of :mod:`gating.tasks.metrics.labels`."""

    has_classes = True
    known_metrics = CLASS_METRICS

    def encode(self, taken: DatasetDict, examples: Examples) -> Prepared:
        """Encode the column ``label`` as classes; ``examples`` may have metrics and classes."""
        splits, names = encode_labels(taken, examples.classes)
        metrics, score = build_class_metrics(self._metrics, examples.metrics or ("accuracy",), num_classes=len(names))
        return Prepared(
            splits=splits,
            metrics=metrics,
            score=score,
            config={**class_config(names), "problem_type": "single_label_classification"},
            baseline=Baseline("majority class", log_frequencies(splits["train"]["label"][:], len(names))),
        )

    def update(
        self, metrics: MetricCollection, batch: Batch, *, outputs: Mapping[str, Any], model: PreTrainedModel
    ) -> None:
        """Compare the logits of the classes to the label."""
        metrics.update(outputs["logits"].float(), batch["labels"])


class LabeledTexts(TextTask):
    """Base of tasks with one label for a text or text pair.

    Attributes:
        label_columns: Usual names of the column of labels, in order of precedence.
    """

    auto_class = AutoModelForSequenceClassification
    label_columns: tuple[str, ...] = LABEL_COLUMNS

    def encode(self, taken: DatasetDict, examples: Examples) -> Prepared:
        """Encode the column ``label`` as numbers, and no other; ``examples`` may have metrics."""
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
        """Tokenize texts, truncated to ``max_length`` tokens, and encode labels."""
        texts = find_text_columns(examples.splits, text_column, text_pair_column)
        label = find_column(examples.splits, label_column, self.label_columns)
        labeled = self.encode(take_columns(examples.splits, {**texts, "label": label}), examples)
        check_texts(labeled.splits, list(texts))
        length = truncation_length(meta_model, max_length)
        return replace(
            labeled,
            splits=tokenize_labeled(labeled.splits, processor, list(texts), length),
            collate=DataCollatorWithPadding(processor),
            config={
                **labeled.config,
                **special_token_ids(processor, meta_model.config),
                # Decoders locate the last token of a text by the padding.
                "pad_token_id": processor.pad_token_id,
            },
        )


class SequenceClassification(ClassTask, LabeledTexts):
    """Classification of texts or text pairs, with the metrics of :mod:`gating.tasks.metrics.labels`."""


class Regression(LabeledTexts):
    """Regression of a number from texts or text pairs, with the metrics of :mod:`gating.tasks.metrics.labels`."""

    label_columns = ("label", "labels", "score", "similarity_score", "rating")
    known_metrics = NUMBER_METRICS

    def encode(self, taken: DatasetDict, examples: Examples) -> Prepared:
        """Convert labels to numbers in single precision; by default the metrics are the two correlations."""
        splits = DatasetDict()
        for split, table in taken.items():
            numbers = read_numbers(table, "label", split)
            splits[split] = table.remove_columns("label").add_column("label", numbers, feature=Value("float32"))
        metrics, score = build_number_metrics(self._metrics, examples.metrics or ("pearson", "spearman"))
        mean = torch.tensor([float(np.mean(splits["train"]["label"][:]))])
        return Prepared(
            splits=splits,
            metrics=metrics,
            score=score,
            config={"num_labels": 1, "problem_type": "regression"},
            # A constant follows no label.
            baseline=Baseline("mean label", mean, undefined={"pearson": 0.0, "spearman": 0.0}),
        )

    def update(
        self, metrics: MetricCollection, batch: Batch, *, outputs: Mapping[str, Any], model: PreTrainedModel
    ) -> None:
        """Compare the logit to the label."""
        metrics.update(outputs["logits"].to(PRECISION).squeeze(-1), batch["labels"].to(PRECISION))
