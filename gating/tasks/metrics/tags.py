"""Metrics of the tags of words, and of the spans that they mark: a span is correct if its type and both ends are."""

import re
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from gating.errors import InputError
from gating.report.score import Score
from gating.tasks.metrics.choice import ChosenMetrics

__all__ = ["TAG_METRICS", "SpanScore", "build_tag_metrics", "find_spans", "mark_spans"]

_SPANS = ("f1", "precision", "recall")
_IGNORED = -100  # label of ignored positions in transformers
_MARK = re.compile(r"O|[BIES]-.+")

TAG_METRICS = (*_SPANS, "accuracy", "macro_f1")


def build_tag_metrics(
    chosen: ChosenMetrics, default: Sequence[str], *, tag_names: Sequence[str]
) -> tuple[MetricCollection, Score]:
    """Return the chosen metrics of tags, or ``default``, or usual ones; and the score to compare runs by."""
    return chosen.build(
        default or (_SPANS if mark_spans(tag_names) else ("accuracy",)),
        make=lambda name: (_metric(name, tag_names), Score(name)),
        arguments={"num_classes": len(tag_names), "ignore_index": _IGNORED, "task": "multiclass"},
    )


def _metric(name: str, tag_names: Sequence[str]) -> Metric:
    if name == "accuracy":
        return MulticlassAccuracy(len(tag_names), average="micro", ignore_index=_IGNORED)
    if name == "macro_f1":
        return MulticlassF1Score(len(tag_names), average="macro", ignore_index=_IGNORED)
    if not mark_spans(tag_names):
        raise InputError(
            f"task.metrics: {name} counts spans, which tags mark as B-TYPE, I-TYPE and O, but these are "
            f"{', '.join(tag_names[:5])}. Take task.metrics=[accuracy]."
        )
    return SpanScore(tag_names, kind=name)


def mark_spans(names: Sequence[str]) -> bool:
    """Return whether tags mark spans, as ``B-person``, ``I-person`` and ``O`` do."""
    return all(_MARK.fullmatch(name) for name in names)


class SpanScore(Metric):
    """Micro-averaged F1, precision or recall of spans, as in the CoNLL script and ``seqeval``."""

    higher_is_better = True
    full_state_update = False
    predicted: Tensor
    expected: Tensor
    correct: Tensor

    def __init__(self, tag_names: Sequence[str], *, kind: str) -> None:
        """Store the tags; ``kind`` is ``f1``, ``precision`` or ``recall``."""
        super().__init__()
        self._tag_names = list(tag_names)
        self._kind = kind
        for name in ("predicted", "expected", "correct"):
            self.add_state(name, torch.tensor(0), dist_reduce_fx="sum")

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        """Add the spans of a batch: numbers of tags, ``[batch, length]``; targets are -100 for tokens without a tag."""
        for row, wanted in zip(predictions.tolist(), targets.tolist(), strict=True):
            tagged = [place for place, tag in enumerate(wanted) if tag != _IGNORED]
            predicted = set(find_spans([self._tag_names[row[place]] for place in tagged]))
            expected = set(find_spans([self._tag_names[wanted[place]] for place in tagged]))
            self.predicted += len(predicted)
            self.expected += len(expected)
            self.correct += len(predicted & expected)

    def compute(self) -> Tensor:
        """Return the metric, from 0 to 1; 0 instead of a division by zero."""
        wholes = {"precision": self.predicted, "recall": self.expected, "f1": (self.predicted + self.expected) / 2}
        return self.correct / wholes[self._kind].clamp_min(0.5)


def find_spans(tags: Sequence[str]) -> Iterator[tuple[str, int, int]]:
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
