"""Metrics of spans that tags mark, such as names: a span is right if its type and both of its ends are."""

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor
from torchmetrics import Metric

__all__ = ["SpanScore", "find_spans"]

Span = tuple[str, int, int]


class SpanScore(Metric):
    """Micro-averaged F1, precision or recall of spans, as the CoNLL script and ``seqeval`` count them."""

    higher_is_better = True
    full_state_update = False
    found: Tensor
    expected: Tensor
    right: Tensor

    def __init__(self, tag_names: Sequence[str], *, kind: Literal["f1", "precision", "recall"]) -> None:
        """Prepare to count.

        Args:
            tag_names: Names of the tags in the order of their numbers.
            kind: What to compute.
        """
        super().__init__()
        self._tag_names = list(tag_names)
        self._kind = kind
        for name in ("found", "expected", "right"):
            self.add_state(name, torch.tensor(0), dist_reduce_fx="sum")

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        """Count the spans of a batch.

        Args:
            predictions: Numbers of tags, ``[batch, length]``.
            targets: The right ones; -100 where a position has no tag.
        """
        for row, wanted in zip(predictions.tolist(), targets.tolist(), strict=True):
            tagged = [place for place, tag in enumerate(wanted) if tag != -100]
            found = set(find_spans([self._tag_names[row[place]] for place in tagged]))
            expected = set(find_spans([self._tag_names[wanted[place]] for place in tagged]))
            self.found += len(found)
            self.expected += len(expected)
            self.right += len(found & expected)

    def compute(self) -> Tensor:
        """Return the share; 0 where there is nothing to divide by."""
        wholes = {"precision": self.found, "recall": self.expected, "f1": (self.found + self.expected) / 2}
        return self.right / wholes[self._kind].clamp_min(0.5)


def find_spans(tags: Sequence[str]) -> Iterator[Span]:
    """Yield type, first and last place of every span that tags mark.

    Tags are ``B-TYPE`` (begins a span), ``I-TYPE`` (goes on), ``E-TYPE`` (ends it), ``S-TYPE`` (is one) and ``O``. A
    span also begins where the type changes or where one goes on that never began.

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
