"""Metrics of language models: those of tokens, and BLEU and chrF of sacrebleu of the texts that they write."""

import importlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy
from torchmetrics.text import Perplexity

from gating.errors import InputError
from gating.report.score import Score
from gating.tasks.metrics.choice import ChosenMetrics
from gating.tasks.metrics.labels import PRECISION

TOKEN_SCORES = {
    "perplexity": Score("perplexity", scale=1, unit="", higher_is_better=False),
    "accuracy": Score("accuracy"),
}
TEXT_METRICS = ("bleu", "chrf", *TOKEN_SCORES)

# Metrics of tokens with their score, and metrics of texts, if any, with the score of both.
TextMetrics = tuple[MetricCollection, Score, MetricCollection | None, Score]


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


def build_text_metrics(chosen: ChosenMetrics, *, vocab_size: int) -> TextMetrics:
    """Return the chosen metrics; those of tokens default to perplexity and accuracy."""
    choices = chosen.read(TEXT_METRICS)
    of_tokens = [name for name, choice in choices.items() if choice is None and name in TOKEN_SCORES]
    of_texts = {name: choice for name, choice in choices.items() if name not in of_tokens}
    first = chosen.score or next(iter(choices))
    score = first if first in of_tokens else None
    tokens, token_score = build_token_metrics(
        replace(chosen, metrics=of_tokens or None, score=score), vocab_size=vocab_size
    )
    if not of_texts:
        return tokens, token_score, None, token_score
    texts, text_score = replace(chosen, metrics=of_texts, score=first if score is None else None).build(
        (), make=lambda name: (SacreScore(name), Score(name, unit=""))
    )
    _check(texts)
    return tokens, token_score, texts, token_score if score else text_score


def _check(metrics: MetricCollection) -> None:
    """Score a text, since no model generates one before the end of a search, which an error would cost."""
    for name, metric in metrics.clone().items():
        try:
            float(metric(["a cat sat here"], ["a cat sat here"]))
        except Exception as error:  # Metrics of users raise errors of any class.
            raise InputError(f"task.metrics.{name} does not give one number for two lists of texts: {error}") from error


class SacreScore(Metric):
    """A corpus-level score of sacrebleu with its default settings (Post 2018, arXiv 1804.08771), from 0 to 1.

    Those of torchmetrics differ by points on small data: BLEU has no smoothing, and chrF another definition. The state
    sums sacrebleu's own statistics of each text, also over processes.
    """

    full_state_update = False
    higher_is_better = True
    counts: Tensor

    def __init__(self, name: str) -> None:
        """Create the score ``bleu`` or ``chrf``."""
        super().__init__()
        # The package takes a while to import.
        metrics: Any = importlib.import_module("sacrebleu.metrics")
        self._score = (metrics.BLEU if name == "bleu" else metrics.CHRF)()
        num_counts = len(self._score._extract_corpus_statistics([""], [[""]])[0])
        self.add_state("counts", default=torch.zeros(num_counts, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, predictions: Sequence[str], references: Sequence[str]) -> None:
        """Add the statistics of texts with one reference each."""
        rows = self._score._extract_corpus_statistics(list(predictions), [list(references)])
        self.counts += torch.tensor(rows, dtype=torch.long, device=self.counts.device).sum(dim=0)

    def compute(self) -> Tensor:
        """Return the score of all texts."""
        score = self._score._compute_score_from_stats(self.counts.tolist()).score
        return torch.tensor(score / 100, dtype=PRECISION)
