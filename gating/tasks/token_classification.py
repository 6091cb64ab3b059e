"""Token classification: a tag for every word, such as named entities or parts of speech."""

from collections import Counter
from collections.abc import Mapping
from itertools import chain
from typing import Any

from datasets import ClassLabel, Dataset, DatasetDict
from torchmetrics import MetricCollection
from transformers import (
    AutoModelForTokenClassification,
    DataCollatorForTokenClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from gating.data.columns import find_column, take_columns
from gating.data.examples import Batch, Examples
from gating.data.labels import check_classes, classes_of_model, number_classes, sort_labels
from gating.data.tokens import check_no_nulls, load_tokenizer, special_token_ids, tokenize, truncation_length
from gating.errors import InputError, shorten
from gating.models.sources import ModelSource
from gating.tasks.base import Baseline, MetricTask, Prepared
from gating.tasks.metrics.labels import class_config, log_frequencies
from gating.tasks.metrics.tags import TAG_METRICS, build_tag_metrics

__all__ = ["TokenClassification", "encode_tags"]

_WORD_COLUMNS = ("tokens", "words", "text")
_TAG_COLUMNS = ("ner_tags", "tags", "label", "labels", "pos_tags")


class TokenClassification(MetricTask):
    """Classification of the words of a text, with the metrics of :mod:`gating.tasks.metrics.tags`."""

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
        splits, tag_names = encode_tags(taken)
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


def encode_tags(splits: DatasetDict) -> tuple[DatasetDict, list[str]]:
    """Replace ``text`` and ``label`` of every split by lists: ``words``, and ``tags`` as class numbers.

    Both columns may hold lists, or strings with spaces between the items. The classes are those of all splits, since a
    rare tag may be missing in one: first the declared ones of the training data, then others sorted.

    Returns:
        The splits, and the names of the classes in the order of their numbers.

    Raises:
        ValueError: A row has no words, or not one tag for each word, or all tags are equal.
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
    names = list(classes_of_model() or [*first, *others])
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
