"""Texts, and pairs of texts with or without scores, as examples of sentence embeddings."""

import hashlib
import math
import random
import re
from typing import Any, Literal

import datasets
import torch
from datasets import Dataset, DatasetDict, Value
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from gating.data.columns import find_text_columns, take_columns, warn_of_overlap
from gating.data.labels import LABEL_COLUMNS, read_numbers
from gating.data.tokens import check_texts, encode_batch, tokenize
from gating.errors import InputError
from gating.tasks.embedding_teacher import EMBEDDINGS, PAIR_EMBEDDINGS

Kind = Literal["texts", "scores", "positives"]

# Usual names of the column of scores, in order of precedence; a label may also be a class.
_SCORES = ("score", "relatedness", "similarity_score", "similarity")
# Negations of English sentences, by rules.
_AUXILIARY = re.compile(
    r"\b(is|are|was|were|can|could|will|would|has|have|had|should|must|may|might|does|do|did)\b(?!['\u2019])"
)
# A second negation would take the first one back.
_NEGATED = re.compile(
    r"\b(not|no|never|none|nobody|nothing|nowhere|neither|nor|cannot|without)\b|n['\u2019]t\b", re.IGNORECASE
)
# Longer texts are often cut before their negation.
_MOST_WORDS = 25
_DETERMINER = re.compile(r"(an?|the|some|one|two|three|many)\s+(?!of\b)(?=\w)", re.IGNORECASE)


def kind_of(table: Dataset) -> Kind:
    """Return whether a table of :func:`read_examples` has texts, pairs with scores, or pairs that belong together."""
    if "text_pair" not in table.column_names:
        return "texts"
    return "scores" if "score" in table.column_names else "positives"


def read_examples(
    splits: DatasetDict, text: str | None, text_pair: str | None, label: str | None, *, loss: str | None
) -> DatasetDict:
    """Return the columns ``text``, ``text_pair`` and ``score`` of each split, as far as it has them.

    Splits may have different columns; those that are not given have usual names. With ``loss="distance"``, training
    pairs need no score: their texts are in the same batch, where the similarity that a teacher finds is learned.
    """
    # Some splits may have single texts, but not all of them where second ones are named.
    named = {text_pair, str(text_pair).split(".")[0]}  # It may be a field, such as translation.de.
    with_pairs = [split for split, table in splits.items() if named & set(table.column_names)] or list(splits)
    tables = {}
    for split, table in splits.items():
        if not len(table):
            raise InputError(f"The {split} data has no rows.")
        one = DatasetDict(train=table)
        columns = find_text_columns(one, text, text_pair if split in with_pairs else None)
        if "text_pair" in columns and not (split == "train" and loss == "distance"):
            score = _score_column(table, label, split)
            columns |= {"score": score} if score else {}
        taken = take_columns(one, columns)
        check_texts(DatasetDict({split: taken["train"]}), [name for name in columns if name != "score"])
        tables[split] = _with_scores(taken["train"], split) if "score" in columns else taken["train"]
    warn_of_overlap(tables, ["text"])
    return DatasetDict(tables)


def _score_column(table: Dataset, given: str | None, split: str) -> str | None:
    """Return the column of the scores of pairs; None for pairs that belong together."""
    usual = given or next((name for name in (*_SCORES, *LABEL_COLUMNS) if name in table.column_names), None)
    if given or usual not in LABEL_COLUMNS or "float" in getattr(table.features[usual], "dtype", ""):
        return usual
    raise InputError(
        f"The {split} data has pairs of texts with the column {usual!r}, which may be classes or scores: name the "
        "column of scores with data.label_column=..., or remove it if all pairs belong together."
    )


def _with_scores(table: Dataset, split: str) -> Dataset:
    """Return a table whose scores are numbers from 0 to 1, in the range of those in the table."""
    scores = read_numbers(table, "score", split)
    low, high = min(scores), max(scores)
    scaled = [(score - low) / (high - low) if high > low else 1.0 for score in scores]
    return table.remove_columns("score").add_column("score", scaled, feature=Value("float32"))


def negate(text: str, draw: random.Random) -> str | None:
    """Return a text with a negation, one of those that the rules make; None if they do not fit, and for long texts.

    "A man is singing." becomes "A man is not singing." or "No man is singing.", and "A man on stage" becomes "No man on
    stage" or "There is no man on stage". Not all are good English; a teacher embeds them as well.

    Example:
        >>> negate("he can swim", random.Random(0))
        'he can not swim'
    """
    if len(text.split()) > _MOST_WORDS or _NEGATED.search(text):
        return None
    forms = []
    has_auxiliary = _AUXILIARY.search(text) is not None
    if has_auxiliary:
        forms.append(_AUXILIARY.sub(r"\1 not", text, count=1))
    found = _DETERMINER.match(text)
    if found:
        rest, beginnings = text[found.end() :], ("No",) if has_auxiliary else ("No", "There is no")
        forms += [f"{one if text[0].isupper() else one.lower()} {rest}" for one in beginnings]
    return draw.choice(forms) if forms else None


def add_negations(table: Dataset, share: float) -> Dataset:
    """Return training texts, and ``share`` times as many negations; where there are pairs, each beside its text."""
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
    """Tokenize the texts of each split; the columns of second texts begin with ``pair_``.

    ``task_query`` and ``task_document`` are numbers of texts, the same for those of equal tokens, which have the same
    embedding; and ``task_scores`` are the scores.
    """

    def tokenize_batch(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        tokens: dict[str, list[Any]] = {"task_scores": batch["score"]} if "score" in batch else {}
        for column, prefix, number in (("text", "", "task_query"), ("text_pair", "pair_", "task_document")):
            if column in batch:
                encoded = encode_batch([batch[column]], tokenizer, max_length)
                tokens |= {f"{prefix}{name}": values for name, values in encoded.items()}
                tokens[number] = [_number_of(row) for row in encoded["input_ids"]]
        return tokens

    # One by one, since splits may have different columns.
    return DatasetDict(
        {
            split: tokenize(DatasetDict({split: table}), tokenize_batch, tokenizer=tokenizer)[split]
            for split, table in splits.items()
        }
    )


def _number_of(tokens: list[int]) -> int:
    """Return a number that no other tokens have."""
    return int.from_bytes(hashlib.blake2b(str(tokens).encode(), digest_size=7).digest(), "big")


def collate_pairs(tokenizer: PreTrainedTokenizerBase, examples: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Return a batch of tokens, padded to the longest text and second text, and of values that begin with ``task_``.

    Both texts of pairs that learn from a teacher are in one batch, the second ones after the first.
    """

    def pad(*prefixes: str) -> dict[str, Tensor]:
        names = tokenizer.model_input_names
        rows = [
            {name: example[prefix + name] for name in names if prefix + name in example}
            for prefix in prefixes
            for example in examples
        ]
        return dict(tokenizer.pad(rows, return_tensors="pt"))

    present = examples[0].keys()
    if PAIR_EMBEDDINGS in present:
        both = {EMBEDDINGS: (EMBEDDINGS, PAIR_EMBEDDINGS), "task_query": ("task_query", "task_document")}
        values = {new: [example[name] for name in names for example in examples] for new, names in both.items()}
        return pad("", "pair_") | {name: torch.tensor(value) for name, value in values.items()}
    batch = pad("")
    if "pair_input_ids" in present:
        batch |= {f"task_pair_{name}": value for name, value in pad("pair_").items()}
    for name in ("task_scores", "task_query", "task_document", EMBEDDINGS):
        if name in present:
            batch[name] = torch.tensor([example[name] for example in examples])
    return batch
