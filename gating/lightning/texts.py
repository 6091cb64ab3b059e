"""From texts to tokens, for every task that reads text."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, DatasetDict
from datasets.fingerprint import Hasher
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from gating.lightning.models import ModelSource

__all__ = ["check_filled", "load_tokenizer", "readable_length", "tokenise"]


def load_tokenizer(source: ModelSource) -> PreTrainedTokenizerBase:
    """Load a model's tokenizer; one without a padding token, as decoders have it, pads with its last token.

    Raises:
        ValueError: A new model has no tokenizer.
    """
    if source.processor is None:
        raise ValueError(f"The {source.title} has no tokenizer: give one with model.tokenizer=FOLDER_OR_HUB_NAME.")
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source.processor)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def readable_length(blueprint: PreTrainedModel, max_length: int) -> int:
    """Return how many tokens of a text to use: ``max_length``, or as many as the model has positions for."""
    positions = getattr(blueprint.config, "max_position_embeddings", None)
    for name, module in blueprint.named_modules():
        # RoBERTa and alike count positions from the padding index on.
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            positions -= module.padding_idx + 1
    return max_length if positions is None else min(max_length, positions)


def tokenise(splits: DatasetDict, function: Callable[..., Any]) -> DatasetDict:
    """Replace every split by what a function makes of it in batches, from the cache where it has been made before."""
    tokens: DatasetDict = splits.map(
        function,
        batched=True,
        remove_columns=splits["train"].column_names,
        cache_file_names={split: _cache_file(table, function) for split, table in splits.items()},
        desc="Tokenising",
    )
    return tokens


def check_filled(splits: DatasetDict, columns: Sequence[str]) -> None:
    """Make sure that no row lacks one of some columns.

    Raises:
        ValueError: One does; the message says which.
    """
    for split, table in splits.items():
        for column in columns:
            # The whole column at once: reading it row by row is a hundred times slower.
            row = next((i for i, value in enumerate(table[column][:]) if value is None), None)
            if row is not None:
                raise ValueError(f"The {split} data has no {column} in row {row + 1}. Fill it in, or remove the row.")


def _cache_file(table: Dataset, function: Callable[..., Any]) -> str | None:
    """Name a file to keep the results of a function in where ``datasets`` would not: for tables from no file."""
    if table.cache_files:
        return None
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "head-gating"
    folder.mkdir(parents=True, exist_ok=True)
    return str(folder / f"{Hasher.hash((table._fingerprint, function))}.arrow")
