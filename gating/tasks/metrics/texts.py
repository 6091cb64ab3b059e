"""Metrics of generated texts, beside those of their tokens."""

from torchmetrics import MetricCollection

from gating.report.score import Score
from gating.tasks.metrics.choice import ChosenMetrics, Metrics
from gating.tasks.metrics.tokens import TOKEN_SCORES, build_token_metrics, choose_token_metrics
from gating.tasks.metrics.translation import SacreScore

__all__ = ["TextMetrics", "build_text_metrics", "choose_text_metrics"]

_TEXT_SCORES = ("bleu", "chrf")

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
