"""Extractive question answering: spans of a context that answer a question, if any, in overlapping windows of it."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from functools import partial
from typing import Annotated, Any, Literal

import torch
from datasets import Dataset, DatasetDict, Features, List, Value, concatenate_datasets
from pydantic import Field
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torchmetrics import Metric, MetricCollection
from torchmetrics.functional.text import squad
from torchmetrics.utilities import dim_zero_cat
from transformers import (
    AutoModelForQuestionAnswering,
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from gating.data.columns import find_column, take_columns
from gating.data.examples import Batch, Examples
from gating.data.tokens import check_no_nulls, check_texts, special_token_ids, tokenize, truncation_length
from gating.errors import InputError, shorten
from gating.report.score import Score
from gating.tasks.base import Prepared, TextTask

_ANSWERS = Features({"text": List(Value("string")), "answer_start": List(Value("int64"))})
# Number of characters by which answer_start may be off, as it is in some rows of SQuAD.
_TOLERANCE = 3


class QuestionAnswering(TextTask):
    """Extractive question answering, in the format of SQuAD."""

    auto_class = AutoModelForQuestionAnswering

    def __init__(
        self,
        max_answer_length: Annotated[int, Field(ge=1)] = 30,
        score: Literal["f1", "exact_match"] | None = None,
    ) -> None:
        """Store the largest number of tokens of an answer, and the metric by which runs are compared."""
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


def read_answers(splits: DatasetDict) -> DatasetDict:
    """Check the column ``answers``: lists ``text`` and ``answer_start``, which are empty without an answer.

    Where they are not near their place in the column ``context``, a model would learn other words.
    """
    read = {}
    for split, table in splits.items():
        try:
            answers = [{name: value[name] for name in _ANSWERS} for value in table["answers"]]
            read[split] = table.remove_columns("answers").add_column("answers", answers, feature=_ANSWERS)
            pairs = [list(zip(value["text"], value["answer_start"], strict=True)) for value in answers]
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"The {split} data has answers that are not in the format of SQuAD, {{'text': [...], "
                f"'answer_start': [...]}}, such as {shorten(repr(table['answers'][0]))}: {error}"
            ) from error
        for row, context in enumerate(table["context"]):
            for text, start in pairs[row]:
                near = context[max(0, start - _TOLERANCE) : max(0, start + len(text) + _TOLERANCE)]
                is_inside = 0 <= start <= len(context) - len(text)
                if not is_inside or "".join(text.split()).lower() not in "".join(near.split()).lower():
                    raise InputError(
                        f"The {split} data has an answer in row {row + 1} that is not at its answer_start, {start}: "
                        f"{shorten(text)!r}; there is {shorten(near)!r}. Correct answer_start, or remove the row."
                    )
    return DatasetDict(read)


def make_windows(
    tokenizer: PreTrainedTokenizerBase, max_length: int, stride: int
) -> Callable[[Mapping[str, list[Any]]], dict[str, list[Any]]]:
    """Return a function that tokenizes a batch of ``question``, ``context`` and ``answers`` into windows.

    A window has ``start_positions`` and ``end_positions``, the first and last token of the first answer. Both are the
    index of the CLS token (or 0) if the window does not hold the whole answer.

    With a column ``example`` there are also values for the metrics: ``metric_example``, the number of the example;
    ``metric_cls_index``, the token whose logits score no answer; and ``metric_offsets``, the characters
    ``(start, stop)`` of each token, -1 outside the context.
    """

    def make(batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        longest = max(map(len, tokenizer(batch["question"], add_special_tokens=False)["input_ids"]))
        if not 0 <= stride < max_length - longest - tokenizer.num_special_tokens_to_add(pair=True):
            raise InputError(
                f"data.stride={stride} does not fit into windows of data.max_length={max_length} tokens, and a "
                f"question of {longest}: give a smaller stride, longer windows, or shorter questions."
            )
        tokens = tokenizer(
            batch["question"],
            batch["context"],
            truncation="only_second",
            max_length=max_length,
            stride=stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        rows, all_offsets = tokens.pop("overflow_to_sample_mapping"), tokens.pop("offset_mapping")
        columns = defaultdict[str, list[Any]](list)
        for window, (row, pairs) in enumerate(zip(rows, all_offsets, strict=True)):
            sequences = tokens.sequence_ids(window)
            offsets = [pair if part == 1 else (-1, -1) for pair, part in zip(pairs, sequences, strict=True)]
            ids = tokens["input_ids"][window]
            cls_index = ids.index(tokenizer.cls_token_id) if tokenizer.cls_token_id in ids else 0
            start, end = _find_answer(batch["answers"][row], offsets) or (cls_index, cls_index)
            columns["start_positions"].append(start)
            columns["end_positions"].append(end)
            if "example" in batch:
                columns["metric_example"].append(batch["example"][row])
                columns["metric_cls_index"].append(cls_index)
                columns["metric_offsets"].append(offsets)
        return {**tokens, **columns}

    return make


def _find_answer(answers: Mapping[str, Sequence[Any]], offsets: Sequence[tuple[int, int]]) -> tuple[int, int] | None:
    """Return the first and last token of the first answer; None if the window does not hold all of it."""
    if not answers["text"]:
        return None
    start = answers["answer_start"][0]
    stop = start + len(answers["text"][0])
    inside = [token for token, (low, _) in enumerate(offsets) if low >= 0]
    if not inside or offsets[inside[0]][0] > start or offsets[inside[-1]][1] < stop:
        return None
    touched = [token for token in inside if offsets[token][0] < stop and offsets[token][1] > start]
    return (touched[0], touched[-1]) if touched else None


def best_spans(
    start_logits: Tensor, end_logits: Tensor, *, offsets: Tensor, cls_index: Tensor, max_length: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the span of each window with the largest sum of the logits, ``[windows, length]``, of its two ends.

    It is given by its score, ``[windows]``, minus infinity if a window has no token of the context; by its characters
    ``(start, stop)``, ``[windows, 2]``; and by the score of no answer, that of the token ``cls_index``, ``[windows]``.
    ``offsets`` are the characters of each token, ``[windows, length, 2]``, -1 outside the context.
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
