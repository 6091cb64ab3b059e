"""Regression: one number for a text or text pair."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from datasets import DatasetDict, Value
from torchmetrics import MetricCollection
from transformers import PreTrainedModel

from gating.data.examples import Batch
from gating.data.labels import read_numbers
from gating.tasks.base import Baseline, Prepared
from gating.tasks.metrics.labels import NUMBER_METRICS, PRECISION, build_number_metrics
from gating.tasks.sequence_classification import LabeledTexts

__all__ = ["Regression"]


class Regression(LabeledTexts):
    """Regression of a number from texts or text pairs, with the metrics of :mod:`gating.tasks.metrics.labels`."""

    label_columns = ("label", "labels", "score", "similarity_score", "rating")
    known_metrics = NUMBER_METRICS

    def encode(self, taken: DatasetDict, default: Sequence[str]) -> Prepared:
        """Convert labels to numbers in single precision; by default the metrics are the two correlations."""
        splits = DatasetDict()
        for split, table in taken.items():
            numbers = read_numbers(table, "label", split)
            splits[split] = table.remove_columns("label").add_column("label", numbers, feature=Value("float32"))
        metrics, score = build_number_metrics(self._metrics, default or ("pearson", "spearman"))
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
