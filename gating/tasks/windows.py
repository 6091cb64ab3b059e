"""Long texts as overlapping windows of tokens, with the position of an answer in each."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from datasets import DatasetDict, Features, List, Value
from transformers import PreTrainedTokenizerBase

from gating.errors import InputError, shorten

__all__ = ["make_windows", "read_answers"]

_ANSWERS = Features({"text": List(Value("string")), "answer_start": List(Value("int64"))})

# Number of characters by which answer_start may be off, as it is in some rows of SQuAD.
_TOLERANCE = 3


def read_answers(splits: DatasetDict) -> DatasetDict:
    """Check the column ``answers``: lists ``text`` and ``answer_start``, which are empty without an answer.

    Raises:
        ValueError: Answers have another form, or are not near their place in the column ``context``: a model would
            learn other words.
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
