"""Answers from the logits of tokens, and the metrics of SQuAD."""

from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.text import squad
from torchmetrics.utilities import dim_zero_cat

from gating.report.score import Score

__all__ = ["AnswerScores", "best_spans"]


def best_spans(
    start_logits: Tensor, end_logits: Tensor, *, offsets: Tensor, cls_index: Tensor, max_length: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the span of each window with the largest sum of the logits of its first and last token.

    Args:
        start_logits: ``[windows, length]``.
        end_logits: ``[windows, length]``.
        offsets: Characters ``(start, stop)`` of each token, ``[windows, length, 2]``; -1 outside the context.
        cls_index: The token whose logits score no answer, ``[windows]``.
        max_length: Maximum number of tokens in a span.

    Returns:
        The score of the best span, ``[windows]``, minus infinity if a window has no token of the context; its
        characters ``(start, stop)``, ``[windows, 2]``; and the score of no answer, ``[windows]``.
    """
    no_answer = (start_logits + end_logits).gather(1, cls_index[:, None])[:, 0]
    outside = offsets[..., 0] < 0
    starts = start_logits.masked_fill(outside, -torch.inf)
    ends = end_logits.masked_fill(outside, -torch.inf)
    scores = starts[:, :, None] + ends[:, None, :]
    allowed = torch.ones_like(scores[0], dtype=torch.bool).triu().tril(max_length - 1)
    best, place = scores.masked_fill(~allowed, -torch.inf).flatten(1).max(1)
    first, last = place // scores.shape[2], place % scores.shape[2]
    rows = torch.arange(len(offsets), device=offsets.device)
    characters = torch.stack([offsets[rows, first, 0], offsets[rows, last, 1]], dim=1)
    return best, characters, no_answer


class AnswerScores(Metric):
    """Exact match and F1 of answers, from 0 to 1; an answer is the best span over all windows of its context."""

    higher_is_better = True
    full_state_update = False
    examples: list[Tensor]
    scores: list[Tensor]
    characters: list[Tensor]
    no_answer: list[Tensor]

    def __init__(self, references: Dataset, *, unanswerable: bool) -> None:
        """Store the columns ``context`` and ``answers`` of all examples, and whether no answer is a valid one."""
        super().__init__()
        self.formats = {name: Score(name) for name in ("exact_match", "f1")}
        self._references = references
        self._unanswerable = unanswerable
        for name in ("examples", "scores", "characters", "no_answer"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, examples: Tensor, scores: Tensor, characters: Tensor, no_answer: Tensor) -> None:
        """Add windows: the numbers of their examples, shape ``(windows,)``, and the results of :func:`best_spans`."""
        self.examples.append(examples)
        self.scores.append(scores)
        self.characters.append(characters)
        self.no_answer.append(no_answer)

    def compute(self) -> dict[str, Tensor]:
        """Return ``exact_match`` and ``f1``."""
        best: dict[int, tuple[float, list[int]]] = {}
        null: dict[int, float] = {}
        states = (self.examples, self.scores, self.characters, self.no_answer)
        for number, score, characters, no_answer in zip(*(dim_zero_cat(s).tolist() for s in states), strict=True):
            best[number] = max(best.get(number, (score, characters)), (score, characters))
            # There is no answer only if all windows prefer that.
            null[number] = min(null.get(number, no_answer), no_answer)
        predictions, targets = list[dict[str, str]](), list[dict[str, Any]]()
        for number, (score, (start, stop)) in best.items():
            row = self._references[number]
            is_empty = score == -torch.inf or (self._unanswerable and null[number] > score)
            # The correct answer to an unanswerable question is the empty text.
            answers = row["answers"] if row["answers"]["text"] else {"text": [""], "answer_start": [0]}
            predictions.append({"id": str(number), "prediction_text": "" if is_empty else row["context"][start:stop]})
            targets.append({"id": str(number), "answers": answers})
        # torchmetrics returns percentages.
        return {name: value / 100 for name, value in squad(predictions, targets).items()}
