"""Long texts as overlapping windows of tokens, with the position of an answer in each."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from datasets import DatasetDict, Features, List, Value
from transformers import PreTrainedTokenizerBase

from gating.errors import InputError, shorten

__all__ = ["check_stride", "make_windows", "read_answers"]

_ANSWERS = Features({"text": List(Value("string")), "answer_start": List(Value("int64"))})

# Number of characters by which answer_start may be off.
_TOLERANCE = 3

# Maximum number of special tokens in a window.
_SPECIAL_TOKENS = 4


def read_answers(splits: DatasetDict) -> DatasetDict:
    """Check the answers, lists ``text`` and ``answer_start`` that are empty without an answer.

    Args:
        splits: Columns ``context`` and ``answers``; a row of ``answers`` has the two lists.

    Raises:
        ValueError: Answers have another form, or are not at their place in the context.
    """
    read = {}
    for split, table in splits.items():
        for row, (value, context) in enumerate(zip(table["answers"], table["context"], strict=True)):
            if not _is_squad(value):
                raise InputError(
                    f"The {split} data has answers in row {row + 1} that are not in the format of SQuAD, "
                    f"{{'text': [...], 'answer_start': [...]}}: {value!r}"
                )
            for text, start in zip(value["text"], value["answer_start"], strict=True):
                _check_answer(text, start, context, where=f"The {split} data has an answer in row {row + 1}")
        answers = [{name: value[name] for name in _ANSWERS} for value in table["answers"]]
        read[split] = table.remove_columns("answers").add_column("answers", answers, feature=_ANSWERS)
    return DatasetDict(read)


def _check_answer(text: str, start: int, context: str, *, where: str) -> None:
    """Check that an answer is in its context, up to a few characters, case and spaces."""
    near = context[max(0, start - _TOLERANCE) : max(0, start + len(text) + _TOLERANCE)]
    is_inside = 0 <= start <= len(context) - len(text)
    if not is_inside or "".join(text.split()).lower() not in "".join(near.split()).lower():
        raise InputError(
            f"{where} that is not at its answer_start, {start}: {shorten(text)!r}; there is {shorten(near)!r}. Correct "
            "answer_start, or remove the row."
        )


def check_stride(max_length: int, stride: int | None) -> int:
    """Return the number of tokens that consecutive windows share; a quarter of a window if ``stride`` is None."""
    room = max_length - max_length // 2 - _SPECIAL_TOKENS
    chosen = max_length // 4 if stride is None else stride
    if not 0 <= chosen < room:
        raise InputError(
            f"data.stride={chosen} does not fit into windows of data.max_length={max_length} tokens, half of which the "
            "question may take: give a smaller stride, or longer windows."
        )
    return chosen


def make_windows(
    tokenizer: PreTrainedTokenizerBase, max_length: int, stride: int, *, with_offsets: bool
) -> Callable[[Mapping[str, list[Any]]], dict[str, list[Any]]]:
    """Return a function that tokenizes a batch of ``question``, ``context``, ``answers`` and ``example`` into windows.

    A window has ``start_positions`` and ``end_positions``, the first and last token of the first answer. Both are the
    index of the CLS token (or 0) if the window does not hold the whole answer.

    With ``with_offsets``, there are also values for the metrics: ``metric_example``, the number of the example;
    ``metric_cls_index``, the token whose logits score no answer; and ``metric_offsets``, the characters
    ``(start, stop)`` of each token, -1 outside the context.
    """

    def make(batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        questions = _shorten(tokenizer, batch["question"], max_length // 2)
        tokens = tokenizer(
            questions,
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
            if with_offsets:
                columns["metric_example"].append(batch["example"][row])
                columns["metric_cls_index"].append(cls_index)
                columns["metric_offsets"].append(offsets)
        return {**tokens, **columns}

    return make


def _shorten(tokenizer: PreTrainedTokenizerBase, questions: Sequence[str], max_length: int) -> list[str]:
    """Return questions truncated to some tokens, so that there is room for the context."""
    tokens = tokenizer(
        list(questions),
        add_special_tokens=False,
        truncation=True,
        max_length=max_length,
        return_offsets_mapping=True,
    )
    return [
        question[: offsets[-1][1]] if offsets else question
        for question, offsets in zip(questions, tokens["offset_mapping"], strict=True)
    ]


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


def _is_squad(value: Any) -> bool:
    """Return whether answers are two lists of equal length, ``text`` and ``answer_start``."""
    if not (isinstance(value, Mapping) and all(isinstance(value.get(name), list) for name in _ANSWERS)):
        return False
    texts, starts = value["text"], value["answer_start"]
    are_typed = all(isinstance(text, str) for text in texts) and all(isinstance(start, int) for start in starts)
    return are_typed and len(texts) == len(starts)
