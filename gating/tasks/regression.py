"""Regression: one number for a text or text pair."""

from collections.abc import Mapping, Sequence
from typing import Any

from datasets import DatasetDict, Value
from torch import Tensor
from torchmetrics import MetricCollection
from transformers import PreTrainedModel

from gating.data.examples import Batch
from gating.data.labels import read_numbers
from gating.tasks.base import Prepared
from gating.tasks.labeled import LabeledTexts
from gating.tasks.metrics.baselines import Baseline, column_mean
from gating.tasks.metrics.numbers import CORRELATIONS, NUMBER_METRICS, PRECISION, build_number_metrics

__all__ = ["Regression", "encode_numbers"]


class Regression(LabeledTexts):
    """Regression of a number from texts or text pairs, with the metrics of :mod:`gating.tasks.metrics.numbers`."""

    label_columns = ("label", "labels", "score", "similarity_score", "rating")
    known_metrics = NUMBER_METRICS

    def encode(self, taken: DatasetDict, default: Sequence[str]) -> Prepared:
        """Convert labels to numbers; by default the metrics are the two correlations."""
        splits = encode_numbers(taken)
        metrics, score = build_number_metrics(self._metrics, default or ("pearson", "spearman"))
        # A constant follows no label.
        undefined = dict.fromkeys(CORRELATIONS, 0.0)
        return Prepared(
            splits=splits,
            metrics=metrics,
            score=score,
            config={"num_labels": 1, "problem_type": "regression"},
            baseline=Baseline("mean label", lambda: column_mean(splits["train"], "label"), _add_mean, undefined),
        )

    def update(
        self, metrics: MetricCollection, batch: Batch, *, outputs: Mapping[str, Any], model: PreTrainedModel
    ) -> None:
        """Compare the logit to the label."""
        metrics.update(outputs["logits"].to(PRECISION).squeeze(-1), batch["labels"].to(PRECISION))


def _add_mean(metrics: MetricCollection, mean: Tensor, batch: Batch) -> None:
    """Update metrics with the mean of the training labels for each example."""
    labels = batch["labels"].to(PRECISION)
    metrics.update(mean.to(labels).expand_as(labels), labels)


def encode_numbers(splits: DatasetDict) -> DatasetDict:
    """Convert the column ``label`` of every split to float32.

    Example:
        >>> from datasets import Dataset
        >>> rows = Dataset.from_dict({"text": ["a", "b"], "label": ["1.5", "2"]})
        >>> encode_numbers(DatasetDict(train=rows))["train"]["label"][:]
        [1.5, 2.0]
    """
    encoded = {}
    for split, table in splits.items():
        numbers = read_numbers(table, "label", split)
        encoded[split] = table.remove_columns("label").add_column("label", numbers, feature=Value("float32"))
    return DatasetDict(encoded)
