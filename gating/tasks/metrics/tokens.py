"""Metrics of language models."""

from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy
from torchmetrics.text import Perplexity

from gating.report.score import Score

__all__ = ["PERPLEXITY", "token_metrics", "update_token_metrics"]

PERPLEXITY = Score("perplexity", scale=1, unit="", higher_is_better=False)


def token_metrics(vocab_size: int) -> MetricCollection:
    """Return perplexity, the exponential of the mean negative log-likelihood of a token, and accuracy."""
    metrics: dict[str, Metric | MetricCollection] = {
        "perplexity": Perplexity(),
        "accuracy": MulticlassAccuracy(vocab_size, average="micro"),
    }
    # Without groups, because the two are updated with different arguments.
    return MetricCollection(metrics, compute_groups=False)


def update_token_metrics(metrics: MetricCollection, logits: Tensor, labels: Tensor) -> None:
    """Update perplexity and accuracy.

    Args:
        metrics: Metrics of :func:`token_metrics`.
        logits: Shape ``(batch, length, vocab_size)``.
        labels: Shape ``(batch, length)``; -100 for ignored tokens.
    """
    is_target = labels != -100
    # Only the logits of targets are converted, because logits are the largest tensor of a language model.
    selected, targets = logits[is_target].float(), labels[is_target]
    if targets.numel():
        metrics["perplexity"].update(selected.unsqueeze(0), targets.unsqueeze(0))
        metrics["accuracy"].update(selected.argmax(-1), targets)
