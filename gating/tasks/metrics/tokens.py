"""Metrics of language models."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy
from torchmetrics.text import Perplexity

from gating.report.score import Score
from gating.tasks.metrics.choice import ChosenMetrics

__all__ = [
    "TOKEN_SCORES",
    "build_token_metrics",
    "update_token_baseline",
    "update_token_metrics",
]

# Targets at once in metrics that need the whole vocabulary.
_ROWS = 1024
PERPLEXITY = Score("perplexity", scale=1, unit="", higher_is_better=False)
TOKEN_SCORES = {"perplexity": PERPLEXITY, "accuracy": Score("accuracy")}


def build_token_metrics(chosen: ChosenMetrics, *, vocab_size: int) -> tuple[MetricCollection, Score]:
    """Return the chosen metrics of tokens, and the score by which runs are compared.

    By default, these are perplexity, the exponential of the mean negative log-likelihood of a token, and accuracy.
    """
    targets = torch.arange(8) % vocab_size
    logits = torch.linspace(-1, 1, 8 * vocab_size).sin().view(8, vocab_size)
    metrics, score = chosen.build(
        tuple(TOKEN_SCORES),
        make=lambda name: (_metric(name, vocab_size), TOKEN_SCORES[name]),
        arguments={"num_classes": vocab_size, "task": "multiclass"},
        example=(logits, targets),
    )
    # Metrics in one group would be updated with the same arguments.
    return MetricCollection(dict(metrics.items()), compute_groups=False), score


def update_token_metrics(metrics: Mapping[str, Metric] | MetricCollection, logits: Tensor, labels: Tensor) -> None:
    """Update the metrics of tokens.

    Args:
        metrics: Metrics of :func:`build_token_metrics`.
        logits: Shape ``(batch, length, vocab_size)``.
        labels: Shape ``(batch, length)``; -100 for ignored tokens.
    """
    is_target = labels != -100
    # Only the logits of targets are converted, because logits are the largest tensor of a language model.
    selected, targets = logits[is_target].float(), labels[is_target]
    if not targets.numel():
        return
    for metric in metrics.values():
        if isinstance(metric, Perplexity):
            metric.update(selected.unsqueeze(0), targets.unsqueeze(0))
        elif isinstance(metric, _Accuracy):
            metric.update(selected.argmax(-1), targets)
        else:
            metric.update(selected, targets)


def update_token_baseline(
    metrics: Mapping[str, Metric] | MetricCollection, log_frequencies: Tensor, labels: Tensor
) -> None:
    """Update the metrics of tokens as :func:`update_token_metrics`, with the logits of a unigram model for each token.

    These are the logarithms of the frequencies of tokens, shape ``(vocab_size,)``.
    """
    targets = labels[labels != -100]
    if not targets.numel():
        return
    for metric in metrics.values():
        if isinstance(metric, Perplexity):
            # Two classes, the target and all others, stand for the whole vocabulary.
            own = log_frequencies[targets].double()
            pairs = torch.stack([own, torch.log1p(-own.exp())], dim=-1)
            metric.update(pairs.unsqueeze(0), torch.zeros_like(targets).unsqueeze(0))
        elif isinstance(metric, _Accuracy):
            metric.update(log_frequencies.argmax().expand_as(targets), targets)
        else:
            for some in targets.split(_ROWS):
                metric.update(log_frequencies.expand(len(some), -1), some)


class _Accuracy(MulticlassAccuracy):
    """Accuracy of the most likely token."""


def _metric(name: str, vocab_size: int) -> Metric:
    return Perplexity() if name == "perplexity" else _Accuracy(vocab_size, average="micro")
