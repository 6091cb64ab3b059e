"""Metrics of generated texts, BLEU and chrF of sacrebleu, beside those of their tokens."""

from collections.abc import Sequence
from typing import Any

import torch
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from gating.report.score import Score
from gating.tasks.metrics.choice import ChosenMetrics, Metrics
from gating.tasks.metrics.tokens import TOKEN_SCORES, build_token_metrics, choose_token_metrics

__all__ = ["SacreScore", "TextMetrics", "build_text_metrics", "choose_text_metrics"]

_TEXT_SCORES: dict[str, Any] = {"bleu": BLEU, "chrf": CHRF}

# Metrics of tokens with their score, and metrics of texts, if any, with the score of both.
TextMetrics = tuple[MetricCollection, Score, MetricCollection | None, Score]


def choose_text_metrics(metrics: Metrics | None, score: str | None) -> ChosenMetrics:
    """Return the metrics of texts that settings choose, checked as far as is possible without data."""
    known = (*_TEXT_SCORES, *TOKEN_SCORES)
    return ChosenMetrics(known if metrics is None else metrics, score, known=known, of="texts")


def build_text_metrics(chosen: ChosenMetrics, *, vocab_size: int) -> TextMetrics:
    """Return the chosen metrics; token metrics default to perplexity and accuracy.

    Raises:
        InputError: A metric does not fit texts.
    """
    of_tokens, of_texts = chosen.split(TOKEN_SCORES)
    tokens, token_score = build_token_metrics(of_tokens or choose_token_metrics(None, None), vocab_size=vocab_size)
    if of_texts is None:
        return tokens, token_score, None, token_score
    texts, text_score = of_texts.build(
        (),
        make=lambda name: (SacreScore(name), Score(name, unit="")),
        arguments={},
        example=(["a cat sits here", "two dogs run"], ["a cat sat here", "three dogs run"]),
    )
    final = token_score if chosen.score == token_score.name else text_score
    return tokens, token_score, MetricCollection(dict(texts.items()), compute_groups=False), final


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
        self._score = _TEXT_SCORES[name]()
        num_counts = len(self._score._extract_corpus_statistics([""], [[""]])[0])
        self.add_state("counts", default=torch.zeros(num_counts, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, predictions: Sequence[str], references: Sequence[str]) -> None:
        """Add the statistics of texts with one reference each."""
        rows = self._score._extract_corpus_statistics(list(predictions), [list(references)])
        self.counts += torch.tensor(rows, dtype=torch.long, device=self.counts.device).sum(dim=0)

    def compute(self) -> Tensor:
        """Return the score of all texts."""
        score = self._score._compute_score_from_stats(self.counts.tolist()).score
        return torch.tensor(score / 100, dtype=torch.float64 if self.counts.device.type != "mps" else torch.float32)
