"""Texts, and pairs of texts with or without scores, as examples of sentence embeddings."""

import math
import random
from typing import Any, Literal

import datasets
import torch
from datasets import Dataset, DatasetDict, Value
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from gating.data.columns import find_text_columns, take_columns
from gating.data.rows import name_row, warn_of_overlap
from gating.data.text.tokens import encode_batch, tokenize
from gating.embedding.negation import negate
from gating.errors import InputError
from gating.tasks.embedding_teacher import EMBEDDINGS, PAIR_EMBEDDINGS

__all__ = ["Kind", "PairCollator", "add_negations", "read_examples", "tokenize_examples"]

Kind = Literal["texts", "scores", "positives"]

# Usual names of the column of scores, in order of precedence; a label may also be a class.
_SCORES = ("score", "relatedness", "similarity_score", "similarity")
_LABELS = ("label", "labels")


def read_examples(
    splits: DatasetDict, text: str | None, text_pair: str | None, label: str | None, *, loss: str | None
) -> tuple[DatasetDict, dict[str, Kind]]:
    """Return the columns ``text``, ``text_pair`` and ``score`` of each split, and the kind of its examples.

    Splits may have different columns. With ``loss="distance"``, the texts of a training pair are in the same batch,
    where their similarity is learned, too.

    Args:
        splits: The data.
        text: Name of the column of texts; by default one of the usual names.
        text_pair: Name of the column of second texts.
        label: Name of the column of scores.
        loss: Name of the loss; None for the one that fits the training data.

    Raises:
        ValueError: A column is missing, a score is no number, or the data do not fit the loss.
    """
    # Some splits may have single texts, but not all of them where second ones are named.
    with_pairs = [split for split, table in splits.items() if _has(table, text_pair)] or list(splits)
    tables, kinds = {}, dict[str, Kind]()
    for split, table in splits.items():
        one = DatasetDict(train=table)
        columns = find_text_columns(one, text, text_pair if split in with_pairs else None)
        is_single = "text_pair" not in columns or (split == "train" and loss == "distance")
        scores = None if is_single else _score_column(table, label, split)
        kinds[split] = "texts" if is_single else "scores" if scores else "positives"
        taken = take_columns(one, columns | ({"score": scores} if scores else {}))["train"]
        tables[split] = _with_scores(taken, split) if scores else taken
    _check_kinds(kinds, loss)
    warn_of_overlap(tables, ["text"])
    return DatasetDict(tables), kinds


def _has(table: Dataset, column: str | None) -> bool:
    """Return whether a table has a column, or that of a nested field such as ``translation.de``."""
    return column is not None and (column in table.column_names or column.split(".")[0] in table.column_names)


def _score_column(table: Dataset, given: str | None, split: str) -> str | None:
    """Return the column of the scores of pairs; None for pairs that belong together."""
    if given is not None:
        return given
    found = next((name for name in _SCORES if name in table.column_names), None)
    label = next((name for name in _LABELS if name in table.column_names), None)
    if found or label is None or _is_number(table, label):
        return found or label
    raise InputError(
        f"The {split} data has pairs of texts with the column {label!r}, which may be classes or scores: name the "
        "column of scores with data.label_column=..., or remove it if all pairs belong together."
    )


def _is_number(table: Dataset, column: str) -> bool:
    return isinstance(table.features[column], Value) and "float" in table.features[column].dtype


def _with_scores(table: Dataset, split: str) -> Dataset:
    """Return a table whose scores are numbers from 0 to 1, in the range of those in the table."""
    scores = []
    for row, score in enumerate(table["score"][:]):
        try:
            scores.append(float(score))
        except (TypeError, ValueError):
            scores.append(math.nan)
        if not math.isfinite(scores[-1]):
            raise InputError(
                f"The {split} data has the score {score!r} in {name_row(split, row)}, which is not a number. Correct "
                "the row."
            )
    low, high = min(scores), max(scores)
    scaled = [(score - low) / (high - low) if high > low else 1.0 for score in scores]
    return table.remove_columns("score").add_column("score", scaled, feature=Value("float32"))


def _check_kinds(kinds: dict[str, Kind], loss: str | None) -> None:
    of_loss: dict[str | None, Kind] = {"cosine": "scores", "multiple_negatives": "positives"}
    needed = of_loss.get(loss)
    if needed is not None and kinds["train"] == "texts":
        raise InputError(f"task.loss={loss} needs pairs of texts, and the training data has single ones.")
    if loss == "multiple_negatives" and kinds["train"] == "scores":
        raise InputError(
            "task.loss=multiple_negatives takes all pairs as ones that belong together, and the training data has a "
            "score for each: use task.loss=cosine, or leave out the column of scores and the pairs with low ones."
        )
    if loss == "cosine" and kinds["train"] != "scores":
        raise InputError("task.loss=cosine needs a score for each pair: name its column with data.label_column=...")
    others = {kind for split, kind in kinds.items() if split != "train"}
    if len(others) > 1:
        raise InputError(
            f"The validation data are {kinds['validation']}, and the test data {kinds['test']}, which have other "
            "metrics: give both the same columns."
        )


def add_negations(table: Dataset, share: float) -> Dataset:
    """Return training texts with negations of some of them, each in a pair with its text where there are pairs.

    Args:
        table: Texts, or pairs of them, that are compared with a teacher.
        share: Number of negations for each row of the table.

    Raises:
        InputError: The rules fit none of the texts.
    """
    draw = random.Random(0)
    columns = [name for name in ("text", "text_pair") if name in table.column_names]
    texts = table.select_columns(columns).cast(datasets.Features(dict.fromkeys(columns, Value("string"))))
    wanted, negations = math.ceil(share * len(texts)), dict[str, str]()
    for row in draw.sample(range(len(texts)), len(texts)):
        found = {text: negate(text, draw) for text in draw.sample(list(texts[row].values()), len(columns))}
        negations |= [(text, negation) for text, negation in found.items() if negation is not None][:1]
        if len(negations) == wanted:
            break
    if not negations:
        raise InputError(
            f"task.negations={share}: none of the training texts has a form that the rules, which are of English, can "
            "negate: leave it out."
        )
    added = {"text": list(negations.values())} | ({"text_pair": list(negations)} if len(columns) == 2 else {})
    return datasets.concatenate_datasets([texts, Dataset.from_dict(added)])


def tokenize_examples(splits: DatasetDict, tokenizer: PreTrainedTokenizerBase, max_length: int) -> DatasetDict:
    """Tokenize the texts of each split; the columns of second texts begin with ``pair_``."""

    def tokenize_batch(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        tokens: dict[str, list[Any]] = {}
        for column, prefix in (("text", ""), ("text_pair", "pair_")):
            if column in batch:
                encoded = encode_batch([batch[column]], tokenizer, max_length)
                tokens |= {f"{prefix}{name}": values for name, values in encoded.items()}
        return tokens

    encoded = {}
    for split, table in splits.items():
        # One by one, since splits may have different columns.
        tokens = tokenize(DatasetDict({split: table}), tokenize_batch, tokenizer=tokenizer)[split]
        if "text_pair" in table.column_names:
            tokens = datasets.concatenate_datasets([tokens, _numbers_and_scores(table)], axis=1)
        encoded[split] = tokens
    return DatasetDict(encoded)


def _numbers_and_scores(table: Dataset) -> Dataset:
    """Return the score of each pair, and numbers of its texts, which are the same for equal ones."""
    columns: dict[str, list[Any]] = {"task_scores": table["score"][:]} if "score" in table.column_names else {}
    for column, name in (("text", "task_query"), ("text_pair", "task_document")):
        numbers: dict[str, int] = {}
        columns[name] = [numbers.setdefault(str(text), len(numbers)) for text in table[column][:]]
    return Dataset.from_dict(columns)


class PairCollator:
    """Collator that pads texts and second texts each to the longest one of the batch."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Store the tokenizer, which pads."""
        self._tokenizer = tokenizer

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Return a batch of padded tokens, and of values for the task whose names begin with ``task_``."""
        if PAIR_EMBEDDINGS in examples[0]:
            return self._pad([*map(_first, examples), *map(_second, examples)])
        batch = self._pad([_first(example) for example in examples])
        if "pair_input_ids" in examples[0]:
            pairs = self._pad([_second(example) for example in examples])
            batch |= {f"task_pair_{name}": value for name, value in pairs.items()}
        for name in ("task_scores", "task_query", "task_document"):
            if name in examples[0]:
                batch[name] = torch.tensor([example[name] for example in examples])
        return batch

    def _pad(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Pad the tokens of texts, and stack the embeddings of the teacher, if there are any."""
        names = self._tokenizer.model_input_names
        batch = dict(self._tokenizer.pad([{n: row[n] for n in names if n in row} for row in rows], return_tensors="pt"))
        if EMBEDDINGS in rows[0]:
            batch[EMBEDDINGS] = torch.tensor([row[EMBEDDINGS] for row in rows])
        return batch


def _first(example: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in example.items() if "pair_" not in name}


def _second(example: dict[str, Any]) -> dict[str, Any]:
    return {name.replace("pair_", ""): value for name, value in example.items() if "pair_" in name}
