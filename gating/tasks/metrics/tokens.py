"""How well a model foretells tokens."""

from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy
from torchmetrics.text import Perplexity

from gating.report.score import Score

__all__ = ["PERPLEXITY", "token_metrics", "update_token_metrics"]

PERPLEXITY = Score("perplexity", scale=1, unit="")


def token_metrics(vocab_size: int) -> MetricCollection:
    """Return perplexity, the exponential of the mean negative log likelihood of a token, and the share foretold."""
    metrics: dict[str, Metric | MetricCollection] = {
        "perplexity": Perplexity(),
        "accuracy": MulticlassAccuracy(vocab_size, average="micro"),
    }
    # Each is updated in its own way.
    return MetricCollection(metrics, compute_groups=False)


def update_token_metrics(metrics: MetricCollection, logits: Tensor, labels: Tensor) -> None:
    """Compare logits, ``[examples, tokens, vocab_size]``, with the tokens that are right, -100 for those left out."""
    counts = labels != -100
    # Only those that count: logits are the largest tensor of a language model.
    kept, right = logits[counts].float(), labels[counts]
    if right.numel():
        metrics["perplexity"].update(kept.unsqueeze(0), right.unsqueeze(0))
        metrics["accuracy"].update(kept.argmax(-1), right)
