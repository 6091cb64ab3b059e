"""Long texts as windows that overlap, and where in them an answer is."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from datasets import DatasetDict, Features, List, Value
from transformers import PreTrainedTokenizerBase

from gating.errors import InputError, shorten

__all__ = ["check_stride", "make_windows", "read_answers"]

_ANSWERS = Features({"text": List(Value("string")), "answer_start": List(Value("int64"))})

# How many characters an answer may be off.
_NEAR = 3

# Special tokens around question and text, at most.
_SPECIAL_TOKENS = 4


def read_answers(splits: DatasetDict) -> DatasetDict:
    """Bring the column ``answers`` into one form: ``text`` and ``answer_start``, a list each, empty without an answer.

    Raises:
        ValueError: A row's answers have another form, or are not in its text.
    """
    read = {}
    for split, table in splits.items():
        answers = []
        for row, (value, context) in enumerate(zip(table["answers"], table["context"], strict=True)):
            found = _as_lists(value)
            if found is None:
                raise InputError(
                    f"The {split} data has answers in row {row + 1} that are not in the format of SQuAD, "
                    f"{{'text': [...], 'answer_start': [...]}}: {value!r}"
                )
            for text, start in zip(found["text"], found["answer_start"], strict=True):
                if not 0 <= start <= len(context) - len(text):
                    raise InputError(
                        f"The {split} data has an answer in row {row + 1} that is outside of its text: {text!r} at "
                        f"character {start} of {len(context)}. Correct answer_start, or remove the row."
                    )
                # Some data sets are a character off, or have other spaces.
                near = context[max(0, start - _NEAR) : start + len(text) + _NEAR]
                if "".join(text.split()).lower() not in "".join(near.split()).lower():
                    raise InputError(
                        f"The {split} data has an answer in row {row + 1} that is somewhere else: {shorten(text)!r}; "
                        f"at character {start} is {shorten(context[start : start + len(text)])!r}. Correct "
                        "answer_start, or remove the row."
                    )
            answers.append(found)
        read[split] = table.remove_columns("answers").add_column("answers", answers, feature=_ANSWERS)
    return DatasetDict(read)


def check_stride(max_length: int, stride: int | None) -> int:
    """Return how many tokens windows share: what is asked for, or a quarter of a window.

    Raises:
        ValueError: Questions take up to half of a window, and so much does not fit into the rest.
    """
    room = max_length - max_length // 2 - _SPECIAL_TOKENS
    chosen = max_length // 4 if stride is None else stride
    if not 0 <= chosen < room:
        raise InputError(
            f"data.stride={chosen} is too much to share for windows of data.max_length={max_length} tokens, half of "
            f"which the question may take: give a stride from 0 to {room - 1}."
            if room > 0
            else f"data.max_length={max_length} is too short for a question and its text; give at least 32."
        )
    return chosen


def make_windows(
    tokenizer: PreTrainedTokenizerBase, max_length: int, stride: int, *, with_offsets: bool
) -> Callable[[Mapping[str, list[Any]]], dict[str, list[Any]]]:
    """Return what makes windows of a batch of ``question``, ``context``, ``answers`` and ``example``.

    A window has ``start_positions`` and ``end_positions``, the tokens of its first answer; where that is not whole in
    it, both are the first token, a special one in most models.

    Args:
        tokenizer: The model's tokenizer.
        max_length: Number of tokens of a window.
        stride: Number of tokens that windows share.
        with_offsets: Whether windows also have what the metrics need: ``metric_example``, ``metric_nowhere`` (the
            token that stands for no answer) and ``metric_offsets``, the characters of each token of the text.
    """

    def function(batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
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
        made: dict[str, list[Any]] = {**tokens, "start_positions": [], "end_positions": []}
        extra: dict[str, list[Any]] = {"metric_example": [], "metric_nowhere": [], "metric_offsets": []}
        for window, (row, offsets) in enumerate(zip(rows, all_offsets, strict=True)):
            in_text = [part == 1 for part in tokens.sequence_ids(window)]
            places = [pair if inside else (-1, -1) for pair, inside in zip(offsets, in_text, strict=True)]
            ids = tokens["input_ids"][window]
            nowhere = ids.index(tokenizer.cls_token_id) if tokenizer.cls_token_id in ids else 0
            start, end = _find_answer(batch["answers"][row], places) or (nowhere, nowhere)
            made["start_positions"].append(start)
            made["end_positions"].append(end)
            extra["metric_example"].append(batch["example"][row])
            extra["metric_nowhere"].append(nowhere)
            extra["metric_offsets"].append(places)
        return made | extra if with_offsets else made

    return function


def _shorten(tokenizer: PreTrainedTokenizerBase, questions: Sequence[str], max_length: int) -> list[str]:
    """Cut questions off, so that there is room for the text."""
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


def _find_answer(answers: Mapping[str, Sequence[Any]], places: Sequence[tuple[int, int]]) -> tuple[int, int] | None:
    """Return the first and last token of the first answer; None where it is not whole in the window."""
    if not answers["text"]:
        return None
    start = answers["answer_start"][0]
    stop = start + len(answers["text"][0])
    inside = [token for token, (low, _) in enumerate(places) if low >= 0]
    if not inside or places[inside[0]][0] > start or places[inside[-1]][1] < stop:
        return None
    touched = [token for token in inside if places[token][0] < stop and places[token][1] > start]
    return (touched[0], touched[-1]) if touched else None


def _as_lists(value: Any) -> dict[str, list[Any]] | None:
    """Return answers as lists of texts and places, whichever way they were written."""
    if isinstance(value, list):
        if not all(isinstance(item, Mapping) and {"text", "answer_start"} <= set(item) for item in value):
            return None
        value = {name: [item[name] for item in value] for name in ("text", "answer_start")}
    if not (isinstance(value, Mapping) and {"text", "answer_start"} <= set(value)):
        return None
    texts, starts = ([item] if not isinstance(item, list) else item for item in (value["text"], value["answer_start"]))
    right = all(isinstance(text, str) for text in texts) and all(isinstance(start, int) for start in starts)
    return {"text": texts, "answer_start": starts} if right and len(texts) == len(starts) else None
