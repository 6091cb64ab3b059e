"""From the scores of tokens to answers, and the metrics of SQuAD."""

from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.text import squad
from torchmetrics.utilities import dim_zero_cat

__all__ = ["AnswerScores", "best_spans"]


def best_spans(
    start_logits: Tensor, end_logits: Tensor, *, offsets: Tensor, nowhere: Tensor, max_length: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the piece of each window's text with the largest sum of the logits of its first and last token.

    Args:
        start_logits: ``[windows, length]``.
        end_logits: ``[windows, length]``.
        offsets: The characters of each token, first and one past the last, ``[windows, length, 2]``; -1 outside of
            the text.
        nowhere: The token that stands for no answer, ``[windows]``.
        max_length: How many tokens an answer may have.

    Returns:
        The score of each window's best piece, ``[windows]``, minus infinity where the window has no text; the
        characters of it, ``[windows, 2]``; and the score of no answer, ``[windows]``.
    """
    no_answer = (start_logits + end_logits).gather(1, nowhere[:, None])[:, 0]
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
    """Exact match and F1 of answers, from 0 to 1, each answer the best piece over all windows of its text."""

    higher_is_better = True
    full_state_update = False
    examples: list[Tensor]
    scores: list[Tensor]
    characters: list[Tensor]
    no_answer: list[Tensor]

    def __init__(self, references: Dataset, *, unanswerable: bool) -> None:
        """Prepare to collect.

        Args:
            references: Columns ``context`` and ``answers``, in the order of the examples' numbers.
            unanswerable: Whether "no answer" is one.
        """
        super().__init__()
        self._references = references
        self._unanswerable = unanswerable
        for name in ("examples", "scores", "characters", "no_answer"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, examples: Tensor, scores: Tensor, characters: Tensor, no_answer: Tensor) -> None:
        """Collect windows: the number of each one's example, and what :func:`best_spans` returns."""
        self.examples.append(examples)
        self.scores.append(scores)
        self.characters.append(characters)
        self.no_answer.append(no_answer)

    def compute(self) -> dict[str, Tensor]:
        """Return ``exact_match`` and ``f1``, which torchmetrics computes of the answers in percent."""
        answers = self._answers()
        predictions: list[dict[str, str]] = []
        targets: list[dict[str, Any]] = []
        for number, text in answers.items():
            right = self._references[number]["answers"]
            # A text without an answer is answered rightly by nothing.
            answered = right if right["text"] else {"text": [""], "answer_start": [0]}
            predictions.append({"id": str(number), "prediction_text": text})
            targets.append({"id": str(number), "answers": answered})
        return {name: value / 100 for name, value in squad(predictions, targets).items()}

    def _answers(self) -> dict[int, str]:
        """Return the answer to each example."""
        best: dict[int, tuple[float, list[int]]] = {}
        nothing: dict[int, float] = {}
        columns = (
            dim_zero_cat(state).tolist() for state in (self.examples, self.scores, self.characters, self.no_answer)
        )
        for number, score, characters, no_answer in zip(*columns, strict=True):
            best[number] = max(best.get(number, (score, characters)), (score, characters))
            # Every window must say that it has no answer.
            nothing[number] = min(nothing.get(number, no_answer), no_answer)
        answers = {}
        for number, (score, (start, stop)) in best.items():
            is_empty = score == -torch.inf or (self._unanswerable and nothing[number] > score)
            answers[number] = "" if is_empty else self._references[number]["context"][start:stop]
        return answers
