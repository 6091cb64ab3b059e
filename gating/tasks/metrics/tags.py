"""Metrics of the tags of words."""

from collections.abc import Sequence
from functools import partial

import torch
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from gating.errors import InputError
from gating.report.score import Score
from gating.tasks.metrics.choice import ChosenMetrics
from gating.tasks.metrics.spans import SpanScore

__all__ = ["build_tag_metrics", "choose_tag_metrics"]

_SPANS = ("f1", "precision", "recall")
_IGNORED = -100  # label of ignored positions in transformers


choose_tag_metrics = partial(
    ChosenMetrics, known=(*_SPANS, "accuracy", "macro_f1"), of="tags", fills=("num_classes", "ignore_index", "task")
)


def build_tag_metrics(
    chosen: ChosenMetrics, default: Sequence[str], *, tag_names: Sequence[str], mark_spans: bool
) -> tuple[MetricCollection, Score]:
    """Return the chosen metrics of tags, or ``default``, or usual ones; and the score to compare runs by.

    Raises:
        InputError: A name is unknown, or a metric does not fit the tags.
    """
    labels = (torch.arange(2 * len(tag_names)) % len(tag_names)).view(2, -1)
    predictions = labels.roll(1, dims=1)
    labels[:, -1] = _IGNORED
    return chosen.build(
        default or (_SPANS if mark_spans else ("accuracy",)),
        make=lambda name: (_metric(name, tag_names, mark_spans=mark_spans), Score(name)),
        arguments={"num_classes": len(tag_names), "ignore_index": _IGNORED, "task": "multiclass"},
        example=(predictions, labels),
    )


def _metric(name: str, tag_names: Sequence[str], *, mark_spans: bool) -> Metric:
    if name == "accuracy":
        return MulticlassAccuracy(len(tag_names), average="micro", ignore_index=_IGNORED)
    if name == "macro_f1":
        return MulticlassF1Score(len(tag_names), average="macro", ignore_index=_IGNORED)
    if not mark_spans:
        raise InputError(
            f"task.metrics: {name} counts spans, which tags mark as B-TYPE, I-TYPE and O, but these are "
            f"{', '.join(tag_names[:5])}. Take task.metrics=[accuracy]."
        )
    return SpanScore(tag_names, kind=name)  # type: ignore[arg-type]
