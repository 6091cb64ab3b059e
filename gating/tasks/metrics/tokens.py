"""Metrics of language models."""

from collections.abc import Iterable

from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy
from torchmetrics.text import Perplexity

from gating.report.score import Score
from gating.tasks.metrics.choice import ChosenMetrics

__all__ = ["TOKEN_METRICS", "TOKEN_SCORES", "build_token_metrics", "update_token_metrics"]

TOKEN_SCORES = {
    "perplexity": Score("perplexity", scale=1, unit="", higher_is_better=False),
    "accuracy": Score("accuracy"),
}


class _Perplexity(Perplexity):
    """Perplexity, the exponential of the mean negative log-likelihood, of tokens without a batch."""

    def update(self, preds: Tensor, target: Tensor) -> None:
        super().update(preds.unsqueeze(0), target.unsqueeze(0))


TOKEN_METRICS = (_Perplexity, MulticlassAccuracy)


def build_token_metrics(chosen: ChosenMetrics, *, vocab_size: int) -> tuple[MetricCollection, Score]:
    """Return the chosen metrics of tokens, by default all, and the score by which runs are compared."""

    def make(name: str) -> tuple[Metric, Score]:
        metric = _Perplexity() if name == "perplexity" else MulticlassAccuracy(vocab_size, average="micro")
        return metric, TOKEN_SCORES[name]

    return chosen.build(tuple(TOKEN_SCORES), make=make)


def update_token_metrics(metrics: Iterable[Metric], logits: Tensor, labels: Tensor) -> None:
    """Update metrics of tokens with logits, ``[batch, length, vocab_size]``; labels are -100 for ignored tokens."""
    is_target = labels != -100
    # Only the logits of targets are converted, because logits are the largest tensor of a language model.
    selected, targets = logits[is_target].float(), labels[is_target]
    if targets.numel():
        for metric in metrics:
            metric.update(selected, targets)
