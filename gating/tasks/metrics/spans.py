"""Metrics of tagged spans, such as named entities: a span is correct if its type and both ends are."""

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor
from torchmetrics import Metric

__all__ = ["SpanScore", "find_spans"]

Span = tuple[str, int, int]


class SpanScore(Metric):
    """Micro-averaged F1, precision or recall of spans, as in the CoNLL script and ``seqeval``."""

    higher_is_better = True
    full_state_update = False
    predicted: Tensor
    expected: Tensor
    correct: Tensor

    def __init__(self, tag_names: Sequence[str], *, kind: Literal["f1", "precision", "recall"]) -> None:
        """Store the tags."""
        super().__init__()
        self._tag_names = list(tag_names)
        self._kind = kind
        for name in ("predicted", "expected", "correct"):
            self.add_state(name, torch.tensor(0), dist_reduce_fx="sum")

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        """Add the spans of a batch.

        Args:
            predictions: Numbers of tags, shape ``(batch, length)``.
            targets: Labels, shape ``(batch, length)``; -100 for tokens without a tag.
        """
        for row, wanted in zip(predictions.tolist(), targets.tolist(), strict=True):
            tagged = [place for place, tag in enumerate(wanted) if tag != -100]
            predicted = set(find_spans([self._tag_names[row[place]] for place in tagged]))
            expected = set(find_spans([self._tag_names[wanted[place]] for place in tagged]))
            self.predicted += len(predicted)
            self.expected += len(expected)
            self.correct += len(predicted & expected)

    def compute(self) -> Tensor:
        """Return the metric, from 0 to 1; 0 instead of a division by zero."""
        wholes = {"precision": self.predicted, "recall": self.expected, "f1": (self.predicted + self.expected) / 2}
        return self.correct / wholes[self._kind].clamp_min(0.5)


def find_spans(tags: Sequence[str]) -> Iterator[Span]:
    """Yield the type, first and last index of every tagged span.

    Tags are ``B-TYPE`` (beginning of a span), ``I-TYPE`` (inside), ``E-TYPE`` (end), ``S-TYPE`` (single word) and
    ``O`` (outside). A span also begins where the type changes, and at an inside or end tag outside a span.

    Example:
        >>> list(find_spans(["B-person", "I-person", "O", "I-place"]))
        [('person', 0, 1), ('place', 3, 3)]
    """
    start, mark, kind = 0, "O", ""
    for place, tag in enumerate([*tags, "O"]):
        next_mark, _, next_kind = tag.partition("-")
        changed = next_kind != kind
        if mark != "O" and (mark in "ES" or next_mark in "BSO" or changed):
            yield kind, start, place - 1
        if next_mark in "BS" or (next_mark != "O" and (mark in "ESO" or changed)):
            start = place
        mark, kind = next_mark, next_kind
