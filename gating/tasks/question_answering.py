"""A question whose answer is a piece of a given text, or that the text does not answer."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from datasets import Dataset, DatasetDict, concatenate_datasets
from torch import Tensor
from torchmetrics import MetricCollection
from transformers import (
    AutoModelForQuestionAnswering,
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from gating.data.batches import Batch
from gating.data.columns import find_column, take_columns
from gating.data.examples import Examples
from gating.data.text.tokenizers import load_or_train_tokenizer
from gating.data.text.tokens import check_no_nulls, check_texts, require_offsets, tokenize, truncation_length
from gating.errors import InputError
from gating.models.sources import ModelSource
from gating.models.special_tokens import special_token_ids
from gating.report.score import Score
from gating.tasks.base import Prepared
from gating.tasks.metrics.answers import AnswerScores, best_spans
from gating.tasks.windows import check_stride, make_windows, read_answers

__all__ = ["QuestionAnswering"]


class QuestionAnswering:
    """A question whose answer is a piece of a text (SQuAD)."""

    auto_class = AutoModelForQuestionAnswering

    def __init__(self, max_answer_length: int = 30) -> None:
        """Say how many tokens an answer may have.

        Raises:
            ValueError: It may have no token.
        """
        if max_answer_length < 1:
            raise InputError(f"task.max_answer_length={max_answer_length}: an answer has at least one token.")
        self._max_answer_length = max_answer_length

    def load_processor(
        self, source: ModelSource, blueprint: PreTrainedModel, splits: DatasetDict
    ) -> PreTrainedTokenizerBase:
        """Load the tokenizer, or learn one for a new model."""
        tokenizer = load_or_train_tokenizer(source, blueprint, splits, frame="both")
        tokenizer = require_offsets(tokenizer, "task=question_answering")
        # Positions in a text are the same in every batch then.
        tokenizer.padding_side = "right"
        return tokenizer

    def prepare(
        self,
        examples: Examples,
        processor: PreTrainedTokenizerBase,
        blueprint: PreTrainedModel,
        *,
        max_length: int = 384,
        stride: int | None = None,
        context_column: str | None = None,
        question_column: str | None = None,
        answers_column: str | None = None,
    ) -> Prepared:
        """Cut texts into windows that overlap, each with its question.

        Args:
            examples: The data.
            processor: The model's tokenizer.
            blueprint: The model without its weights.
            max_length: Number of tokens of a window, with the question.
            stride: Number of tokens that windows share; a quarter of ``max_length`` when left out.
            context_column: Column of the text.
            question_column: Column of the question.
            answers_column: Column of the answers: ``text`` and ``answer_start``, each a list; empty lists where the
                text holds no answer.
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
        length = truncation_length(blueprint, max_length)
        stride = check_stride(length, stride)
        numbered = _number(splits)
        held_out = {split: table for split, table in numbered.items() if split != "train"}
        # Tokenizers remember how they were used last, and the cache tells them apart by that: each part has its own.
        train = tokenize(
            # Nothing is compared with training examples.
            DatasetDict(train=numbered["train"]),
            make_windows(deepcopy(processor), length, stride, with_offsets=False),
        )
        windows = tokenize(DatasetDict(held_out), make_windows(deepcopy(processor), length, stride, with_offsets=True))
        references = concatenate_datasets([splits[split] for split in held_out])
        unanswerable = any(not answers["text"] for answers in splits["train"]["answers"])
        return Prepared(
            splits=DatasetDict(train=train["train"], **windows),
            collate=_WindowCollator(processor),
            metrics=MetricCollection([AnswerScores(references, unanswerable=unanswerable)]),
            score=Score("f1"),
            config={**special_token_ids(processor, blueprint.config), "pad_token_id": processor.pad_token_id},
        )

    def update(
        self, metrics: MetricCollection, batch: Batch, *, outputs: Mapping[str, Any], model: PreTrainedModel
    ) -> None:
        """Compare the best piece of each text with its answers."""
        spans = best_spans(
            outputs["start_logits"].float(),
            outputs["end_logits"].float(),
            offsets=batch["metric_offsets"],
            nowhere=batch["metric_nowhere"],
            max_length=self._max_answer_length,
        )
        metrics.update(batch["metric_example"], *spans)


class _WindowCollator:
    """Pads windows, and the places of their tokens in the text with -1."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._pad = DataCollatorWithPadding(tokenizer)

    def __call__(self, windows: list[dict[str, Any]]) -> dict[str, Tensor]:
        offsets = [window["metric_offsets"] for window in windows if "metric_offsets" in window]
        batch = dict(self._pad([{k: v for k, v in w.items() if k != "metric_offsets"} for w in windows]))
        if offsets:
            padded = torch.full((*batch["input_ids"].shape, 2), -1)
            for row, places in enumerate(offsets):
                padded[row, : len(places)] = torch.tensor(places)
            batch["metric_offsets"] = padded
        return batch


def _number(splits: DatasetDict) -> dict[str, Dataset]:
    """Give every example of validation and test a number of its own, and training examples any."""
    numbered, start = {}, 0
    for split, table in splits.items():
        numbered[split] = table.add_column("example", list(range(start, start + len(table))))
        start += len(table) if split != "train" else 0
    return numbered
