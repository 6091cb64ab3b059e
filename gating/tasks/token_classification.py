"""Token classification: a tag for every word, such as named entities or parts of speech."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from datasets import ClassLabel, Dataset, DatasetDict
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score
from transformers import (
    AutoModelForTokenClassification,
    DataCollatorForTokenClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from gating.data.columns import find_column, take_columns
from gating.data.examples import Batch, Examples
from gating.data.labels import check_classes, number_classes, sort_labels
from gating.data.tokens import check_no_nulls, load_tokenizer, special_token_ids, tokenize, truncation_length
from gating.errors import InputError, shorten
from gating.models.sources import ModelSource
from gating.report.score import Score
from gating.tasks.base import Baseline, MetricTask, Prepared
from gating.tasks.metrics.choice import ChosenMetrics
from gating.tasks.metrics.labels import class_config, log_frequencies

_WORD_COLUMNS = ("tokens", "words", "text")
_TAG_COLUMNS = ("ner_tags", "tags", "label", "labels", "pos_tags")
_SPANS = ("f1", "precision", "recall")
_IGNORED = -100  # label of ignored positions in transformers
_MARK = re.compile(r"O|[BIES]-.+")

TAG_METRICS = (*_SPANS, "accuracy", "macro_f1")


class TokenClassification(MetricTask):
    """Classification of the words of a text, with metrics of their tags, or of the spans that these mark."""

    auto_class = AutoModelForTokenClassification
    known_metrics = TAG_METRICS

    def load_processor(
        self, source: ModelSource, meta_model: PreTrainedModel, splits: DatasetDict
    ) -> PreTrainedTokenizerBase:
        """Load a tokenizer that tokenizes every word as if it followed a space."""
        return load_tokenizer(source, after_space=True)

    def prepare(
        self,
        examples: Examples,
        processor: PreTrainedTokenizerBase,
        meta_model: PreTrainedModel,
        *,
        max_length: int = 128,
        text_column: str | None = None,
        label_column: str | None = None,
    ) -> Prepared:
        """Tokenize words; the first token of each word has its tag as label.

        Words and tags are lists, or strings with spaces. Texts of more than ``max_length`` tokens become several
        examples.
        """
        columns = {
            "text": find_column(examples.splits, text_column, _WORD_COLUMNS),
            "label": find_column(examples.splits, label_column, _TAG_COLUMNS),
        }
        taken = take_columns(examples.splits, columns)
        check_no_nulls(taken, list(columns))
        splits, tag_names = encode_tags(taken, examples.classes)
        metrics, score = build_tag_metrics(self._metrics, examples.metrics, tag_names=tag_names)
        return Prepared(
            splits=_tokenize_words(splits, processor, truncation_length(meta_model, max_length)),
            collate=DataCollatorForTokenClassification(processor),
            metrics=metrics,
            score=score,
            config={**class_config(tag_names), **special_token_ids(processor, meta_model.config)},
            baseline=Baseline(
                "majority tag", log_frequencies(chain.from_iterable(splits["train"]["tags"][:]), len(tag_names))
            ),
        )

    def update(
        self, metrics: MetricCollection, batch: Batch, *, outputs: Mapping[str, Any], model: PreTrainedModel
    ) -> None:
        """Compare the tag with the largest logit to the label, at the first token of each word."""
        metrics.update(outputs["logits"].argmax(-1), batch["labels"])


def encode_tags(splits: DatasetDict, classes: Sequence[str] = ()) -> tuple[DatasetDict, list[str]]:
    """Replace ``text`` and ``label`` of every split by lists: ``words``, and ``tags`` as numbers; return their names.

    Both columns may hold lists, or strings with spaces between the items. The classes are those of all splits, since a
    rare tag may be missing in one: first the declared ones of the training data, then others sorted.
    """
    words = {split: [_items(value) for value in table["text"][:]] for split, table in splits.items()}
    tags = {split: [_items(row, _classes(table)) for row in table["label"][:]] for split, table in splits.items()}
    for split in splits:
        for row, (row_words, row_tags) in enumerate(zip(words[split], tags[split], strict=True)):
            if not row_words or None in row_words or None in row_tags or len(row_words) != len(row_tags):
                raise InputError(
                    f"The {split} data has {len(row_words)} words but {len(row_tags)} tags in row {row + 1}, or some "
                    f"are missing: {shorten(str(row_tags))}. Give every word one tag, as lists or with spaces between "
                    "them; or learn one label for a whole text with task=sequence_classification."
                )
    declared = _classes(splits["train"])
    first = declared.names if declared else []
    others = sort_labels({tag for rows in tags.values() for row in rows for tag in row} - set(first))
    names = list(classes or [*first, *others])
    if len(names) < 2:
        raise InputError(f"All words have the tag {', '.join(names) or 'none'}; there must be at least two.")
    numbers = number_classes(names, Counter(tag for rows in tags.values() for row in rows for tag in row))
    for split, rows in tags.items():
        # One tag of each row, an unknown one if there is any.
        check_classes((next((tag for tag in row if tag not in numbers), row[0]) for row in rows), numbers, split)
    encoded = {
        split: Dataset.from_dict(
            {"words": words[split], "tags": [[numbers[tag] for tag in row] for row in tags[split]]}
        )
        for split in splits
    }
    return DatasetDict(encoded), names


def _classes(table: Dataset) -> ClassLabel | None:
    inner = getattr(table.features["label"], "feature", None)
    return inner if isinstance(inner, ClassLabel) else None


def _items(value: Any, classes: ClassLabel | None = None) -> list[Any]:
    """Return the items of a list or string, with the names of classes; None for nulls."""
    if isinstance(value, str):
        return value.split()
    name = classes.int2str if classes else str
    return [None if item is None else name(item) for item in value] if isinstance(value, list) else []


def _tokenize_words(splits: DatasetDict, tokenizer: PreTrainedTokenizerBase, max_length: int) -> DatasetDict:
    def tokenize_batch(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        tokens = tokenizer(
            batch["words"],
            is_split_into_words=True,
            truncation=True,
            max_length=max_length,
            # Every word counts in training and in the metrics.
            return_overflowing_tokens=True,
        )
        rows = tokens.pop("overflow_to_sample_mapping")
        labels, seen = [], (-1, -1)
        for window, row in enumerate(rows):
            targets = []
            for word in tokens.word_ids(window):
                is_first = word is not None and (row, word) > seen
                targets.append(batch["tags"][row][word] if is_first else -100)
                seen = max(seen, (row, word)) if word is not None else seen
            labels.append(targets)
        return {**tokens, "labels": labels}

    return tokenize(splits, tokenize_batch, tokenizer=tokenizer)


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
