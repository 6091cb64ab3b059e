"""Extractive question answering: spans of a context that answer a question, if any."""

from collections.abc import Mapping
from copy import deepcopy
from functools import partial
from typing import Annotated, Any, Literal

import torch
from datasets import DatasetDict, concatenate_datasets
from pydantic import Field
from torch.nn.utils.rnn import pad_sequence
from torchmetrics import MetricCollection
from transformers import (
    AutoModelForQuestionAnswering,
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from gating.data.columns import find_column, take_columns
from gating.data.examples import Batch, Examples
from gating.data.tokens import check_no_nulls, check_texts, special_token_ids, tokenize, truncation_length
from gating.report.score import Score
from gating.tasks.base import Prepared, TextTask
from gating.tasks.metrics.answers import AnswerScores, best_spans
from gating.tasks.windows import make_windows, read_answers

__all__ = ["QuestionAnswering"]


class QuestionAnswering(TextTask):
    """Extractive question answering, in the format of SQuAD."""

    auto_class = AutoModelForQuestionAnswering

    def __init__(
        self,
        max_answer_length: Annotated[int, Field(ge=1)] = 30,
        score: Literal["f1", "exact_match"] | None = None,
    ) -> None:
        """Store the maximum length of predicted answers.

        Args:
            max_answer_length: Number of tokens.
            score: The metric by which runs are compared; ``f1`` if None.
        """
        self._max_answer_length = max_answer_length
        self._score = score

    def prepare(
        self,
        examples: Examples,
        processor: PreTrainedTokenizerBase,
        meta_model: PreTrainedModel,
        *,
        max_length: int = 384,
        stride: int | None = None,
        context_column: str | None = None,
        question_column: str | None = None,
        answers_column: str | None = None,
    ) -> Prepared:
        """Tokenize questions and contexts into windows of ``max_length`` tokens, which share ``stride`` tokens.

        Answers are lists ``text`` and ``answer_start``, empty without an answer; the stride is a quarter of a window
        if None.
        """
        columns = {
            "context": find_column(examples.splits, context_column, ("context", "passage")),
            "question": find_column(examples.splits, question_column, ("question", "query")),
            "answers": find_column(examples.splits, answers_column, ("answers", "answer")),
        }
        taken = take_columns(examples.splits, columns)
        check_no_nulls(taken, ["answers"])
        check_texts(taken, ["context", "question"])
        splits = read_answers(taken)
        # Padding on the left would shift positions.
        processor.padding_side = "right"
        length = truncation_length(meta_model, max_length)
        stride = length // 4 if stride is None else stride
        references = concatenate_datasets([table for split, table in splits.items() if split != "train"])
        unanswerable = any(not answers["text"] for answers in splits["train"]["answers"])
        return Prepared(
            splits=_tokenize(splits, processor, length, stride),
            collate=partial(_collate, DataCollatorWithPadding(processor)),
            metrics=MetricCollection([AnswerScores(references, unanswerable=unanswerable)]),
            score=Score(self._score or "f1"),
            config={**special_token_ids(processor, meta_model.config), "pad_token_id": processor.pad_token_id},
        )

    def update(
        self, metrics: MetricCollection, batch: Batch, *, outputs: Mapping[str, Any], model: PreTrainedModel
    ) -> None:
        """Compare the best span of each context to its answers."""
        spans = best_spans(
            outputs["start_logits"].float(),
            outputs["end_logits"].float(),
            offsets=batch["metric_offsets"],
            cls_index=batch["metric_cls_index"],
            max_length=self._max_answer_length,
        )
        metrics.update(batch["metric_example"], *spans)


def _collate(pad: DataCollatorWithPadding, windows: list[dict[str, Any]]) -> dict[str, Any]:
    """Pad windows; offsets are padded with -1."""
    offsets = [torch.tensor(window["metric_offsets"]) for window in windows if "metric_offsets" in window]
    batch = dict(pad([{name: value for name, value in w.items() if name != "metric_offsets"} for w in windows]))
    padded = {"metric_offsets": pad_sequence(offsets, batch_first=True, padding_value=-1)} if offsets else {}
    return batch | padded


def _tokenize(splits: DatasetDict, tokenizer: PreTrainedTokenizerBase, max_length: int, stride: int) -> DatasetDict:
    """Return windows of all splits; those of validation and test have values for the metrics."""
    windows, start = {}, 0
    for split, table in splits.items():
        if split != "train":
            table, start = table.add_column("example", list(range(start, start + len(table)))), start + len(table)
        # Tokenizers store their last truncation settings, on which the cache depends: each call gets its own copy.
        make = make_windows(deepcopy(tokenizer), max_length, stride)
        windows[split] = tokenize(DatasetDict({split: table}), make, tokenizer=tokenizer)[split]
    return DatasetDict(windows)
