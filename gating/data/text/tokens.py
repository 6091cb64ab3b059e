"""From texts to tokens, for every task that reads text."""

import datetime
import decimal
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, DatasetDict, Value
from datasets.fingerprint import Hasher
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from gating.errors import InputError, loading, shorten
from gating.models.sources import ModelSource

__all__ = [
    "check_no_nulls",
    "check_texts",
    "load_tokenizer",
    "truncation_length",
    "require_offsets",
    "tokenize",
    "tokenize_labeled",
]


_READABLE = (str, int, float, decimal.Decimal, datetime.date, datetime.time, datetime.timedelta)


def load_tokenizer(source: ModelSource, *, after_space: bool = False) -> PreTrainedTokenizerBase:
    """Load a model's tokenizer; one without a padding token, as decoders have it, pads with its last token.

    Args:
        source: Where the model comes from.
        after_space: Whether every text is tokenised as if a space went before it, by tokenizers that tell these apart.

    Raises:
        ValueError: A new model has no tokenizer, or it does not load.
    """
    if source.processor is None:
        raise InputError(f"The {source.title} has no tokenizer: give one with model.tokenizer=FOLDER_OR_HUB_NAME.")
    with loading(f"The tokenizer in {source.processor}", remedy="Name another one with model.tokenizer=..."):
        load = partial(AutoTokenizer.from_pretrained, source.processor, revision=source.processor_revision)
        tokenizer: PreTrainedTokenizerBase = load()
        if after_space and getattr(tokenizer, "add_prefix_space", True) is False:
            tokenizer = load(add_prefix_space=True)
    if tokenizer.pad_token is None and tokenizer.eos_token is None:
        raise InputError(
            f"The tokenizer in {source.processor} has neither a padding token nor one for the end of a text, and "
            "batches need one: set its pad_token and save it again."
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def require_offsets(tokenizer: PreTrainedTokenizerBase, task: str) -> PreTrainedTokenizerBase:
    """Return a tokenizer that knows which characters its tokens came from.

    Raises:
        ValueError: This one does not.
    """
    if not tokenizer.is_fast:
        raise InputError(
            f"{task} needs a tokenizer that tells where in the text its tokens were, a fast one; "
            f"{type(tokenizer).__name__} does not. Take another model."
        )
    return tokenizer


def truncation_length(blueprint: PreTrainedModel, max_length: int, *, name: str = "data.max_length") -> int:
    """Return how many tokens of a text to use: ``max_length``, or as many as the model has positions for.

    Raises:
        ValueError: There would be none.
    """
    if max_length < 1:
        raise InputError(f"{name}={max_length}: a text has at least one token.")
    # Models made of two have a configuration for each.
    parts = [blueprint.config, *(getattr(blueprint.config, part, None) for part in ("encoder", "decoder"))]
    found = [getattr(part, "max_position_embeddings", None) for part in parts if isinstance(part, PreTrainedConfig)]
    # XLNet says with -1 that there is no limit.
    positions: int | None = min((number for number in found if number is not None and number > 0), default=None)
    if positions is None:
        return max_length
    for place, module in blueprint.named_modules():
        # RoBERTa and alike count positions from the padding index on.
        if place.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            positions -= module.padding_idx + 1
    return min(max_length, positions)


def tokenize(splits: DatasetDict, function: Callable[..., Any]) -> DatasetDict:
    """Replace every split by what a function makes of it in batches, from the cache where it has been made before."""
    tokens: DatasetDict = splits.map(
        function,
        batched=True,
        remove_columns=next(iter(splits.values())).column_names,
        cache_file_names={split: _cache_file(table, function) for split, table in splits.items()},
        desc="Tokenising",
    )
    return tokens


def tokenize_labeled(
    splits: DatasetDict, tokenizer: PreTrainedTokenizerBase, columns: Sequence[str], max_length: int
) -> DatasetDict:
    """Replace texts, or pairs of texts, by tokens, and ``label`` by ``labels``.

    Raises:
        ValueError: The special tokens leave no room for a text.
    """
    num_special = tokenizer.num_special_tokens_to_add(pair=len(columns) > 1)
    if max_length <= num_special:
        raise InputError(
            f"data.max_length={max_length} leaves no room for a text: the tokenizer adds {num_special} special tokens."
        )

    special = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    placeholder = next(number for number in special if number is not None)

    def function(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        texts = [[str(text) for text in batch[column]] for column in columns]
        tokens = tokenizer(*texts, truncation=True, max_length=max_length)
        for row, ids in enumerate(tokens["input_ids"]):
            if not ids:
                # An empty text without special tokens is nothing that a model can read.
                for name, values in tokens.items():
                    values[row] = [{"input_ids": placeholder, "attention_mask": 1}.get(name, 0)]
        return {**tokens, "labels": batch["label"]}

    return tokenize(splits, function)


def check_texts(splits: DatasetDict, columns: Sequence[str]) -> None:
    """Make sure that every row has a text in some columns; numbers and dates are read as they are written.

    Raises:
        ValueError: A row has none, or something else, such as a list; the message says which.
    """
    check_no_nulls(splits, columns)
    for split, table in splits.items():
        for column in columns:
            feature = table.features[column]
            if isinstance(feature, Value) and "binary" not in feature.dtype:
                continue
            row = next((row for row, value in enumerate(table[column][:]) if not isinstance(value, _READABLE)), None)
            if row is not None:
                raise InputError(
                    f"The {split} data has no {column} in row {row + 1} but {shorten(repr(table[column][row]))}. Name "
                    f"the column of the texts with data.{column}_column=..., or correct the row."
                )


def check_no_nulls(splits: DatasetDict, columns: Sequence[str]) -> None:
    """Make sure that no row lacks one of some columns.

    Raises:
        ValueError: One does; the message says which.
    """
    for split, table in splits.items():
        for column in columns:
            # As Arrow has it, because images would be decoded otherwise.
            missing = table.with_format("arrow")[column][:].is_null().to_pylist()
            if any(missing):
                row = missing.index(True)
                raise InputError(f"The {split} data has no {column} in row {row + 1}. Fill it in, or remove the row.")


def _cache_file(table: Dataset, function: Callable[..., Any]) -> str | None:
    """Name a file to keep the results of a function in where ``datasets`` would not: for tables from no file."""
    if table.cache_files:
        return None
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "head-gating"
    folder.mkdir(parents=True, exist_ok=True)
    return str(folder / f"{Hasher.hash((table._fingerprint, function))}.arrow")
