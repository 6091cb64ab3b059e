"""Texts as tokens, for every task with texts."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import pyarrow.compute as pc
import torch
from datasets import DatasetDict, Value
from datasets.fingerprint import Hasher
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from gating.errors import InputError, loading, shorten
from gating.models.sources import ModelSource
from gating.tracking.progress import bar
from gating.vocabulary import check_known, check_vocabulary

# Number of tokens that tell whether a tokenizer knows the texts.
_CHECKED = 10_000_000


def load_tokenizer(source: ModelSource, *, after_space: bool = False) -> PreTrainedTokenizerBase:
    """Load a model's tokenizer; it pads with its EOS token if it has no padding token, as those of decoders.

    With ``after_space``, every text is tokenized as if it followed a space.
    """
    if source.processor is None:
        raise InputError(f"The {source.title} has no tokenizer: give one with model.tokenizer=FOLDER_OR_HUB_NAME.")
    with loading(f"The tokenizer in {source.processor}", remedy="Name another one with model.tokenizer=..."):
        load = partial(AutoTokenizer.from_pretrained, source.processor, revision=source.processor_revision)
        tokenizer: PreTrainedTokenizerBase = load()
        if after_space and getattr(tokenizer, "add_prefix_space", True) is False:
            tokenizer = load(add_prefix_space=True)
    check_vocabulary(tokenizer, name=str(source.processor))
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise InputError(f"The tokenizer in {source.processor} needs a pad_token: set it, and save it again.")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def truncation_length(meta_model: PreTrainedModel, max_length: int, *, name: str = "data.max_length") -> int:
    """Return the number of tokens to truncate texts to: ``max_length``, or the model's number of positions."""
    if max_length < 1:
        raise InputError(f"{name}={max_length}: a text has at least one token.")
    # Some encoder-decoders have a configuration for each of their two parts.
    parts = [meta_model.config, *(getattr(meta_model.config, part, None) for part in ("encoder", "decoder"))]
    found = [getattr(part, "max_position_embeddings", None) for part in parts if isinstance(part, PreTrainedConfig)]
    # XLNet has -1 for no limit.
    positions: int | None = min((number for number in found if number is not None and number > 0), default=None)
    if positions is None:
        return max_length
    for path, module in meta_model.named_modules():
        # RoBERTa and similar models start to count positions after the padding index.
        if path.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            positions -= module.padding_idx + 1
    return min(max_length, positions)


def tokenize(splits: DatasetDict, function: Callable[..., Any], *, tokenizer: PreTrainedTokenizerBase) -> DatasetDict:
    """Map every split in batches to columns of tokens alone, or load the result from the cache of an earlier run."""

    def counted(batch: dict[str, list[Any]]) -> Any:
        progress.update(len(next(iter(batch.values()))))
        return function(batch)

    # The cache of datasets has no tables in memory. Names for all splits come before the tokenizer is called, which
    # changes it in some versions of transformers.
    names = {split: Hasher.hash((table._fingerprint, function)) for split, table in splits.items()}
    columns = next(iter(splits.values())).column_names
    with bar(title="Tokenizing", total=sum(map(len, splits.values())), unit="rows") as progress:
        tokens = DatasetDict(
            {
                split: table.map(
                    counted,
                    batched=True,
                    remove_columns=columns,
                    new_fingerprint=names[split],
                    cache_file_name=cache_file(names[split]),
                )
                for split, table in splits.items()
            }
        )
    if "train" in tokens:
        ids = pc.list_flatten(tokens["train"].with_format("arrow")["input_ids"][:])[:_CHECKED]
        check_known(tokenizer, torch.from_numpy(ids.cast("int64").to_numpy().copy()), name="training data")
    return tokens


def cache_file(fingerprint: str) -> str:
    """Return the path of a table in the cache of ``datasets``."""
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "head-gating"
    folder.mkdir(parents=True, exist_ok=True)
    return str(folder / f"{fingerprint}.arrow")


def tokenize_labeled(
    splits: DatasetDict, tokenizer: PreTrainedTokenizerBase, columns: Sequence[str], max_length: int
) -> DatasetDict:
    """Tokenize texts, or text pairs in two columns, and rename ``label`` to ``labels``.

    They are truncated to ``max_length`` tokens, special tokens included.
    """

    def tokenize_batch(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        tokens = encode_batch([batch[column] for column in columns], tokenizer, max_length)
        return {**tokens, "labels": batch["label"]}

    return tokenize(splits, tokenize_batch, tokenizer=tokenizer)


def encode_batch(
    columns: Sequence[Sequence[Any]], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> dict[str, list[Any]]:
    """Return the tokens of texts, or of text pairs in two columns, truncated to ``max_length`` tokens."""
    texts = [[str(text) for text in column] for column in columns]
    tokens: dict[str, list[Any]] = dict(tokenizer(*texts, truncation=True, max_length=max_length))
    special = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    placeholder = next(number for number in special if number is not None)
    for row, ids in enumerate(tokens["input_ids"]):
        if not ids:
            # A model needs at least one token, but some tokenizers return none for an empty text.
            for name, values in tokens.items():
                values[row] = [{"input_ids": placeholder, "attention_mask": 1}.get(name, 0)]
    return tokens


def check_texts(splits: DatasetDict, columns: Sequence[str]) -> None:
    """Check that every row has a text, number or date in some columns."""
    check_no_nulls(splits, columns)
    for split, table in splits.items():
        for column in columns:
            feature = table.features[column]
            if not isinstance(feature, Value) or "binary" in feature.dtype:
                raise InputError(
                    f"The {split} data has {shorten(str(feature))} as {column}, not texts. Name the right column with "
                    f"data.{column}_column=..."
                )


def check_no_nulls(splits: DatasetDict, columns: Sequence[str]) -> None:
    """Check that some columns have a value in every row."""
    for split, table in splits.items():
        for column in columns:
            # Arrow reads the column without decoding images.
            row = pc.index(table.with_format("arrow")[column][:].is_null(), True).as_py()
            if row >= 0:
                raise InputError(f"The {split} data has no {column} in row {row + 1}. Fill it in, or remove the row.")


def special_token_ids(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> dict[str, int]:
    """Return the configuration values that follow from a tokenizer, and for encoder-decoders those that must change.

    A pretrained model has most of them already; a new one has the token IDs of its family's own tokenizer.
    """
    ids: dict[str, int] = {}
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = getattr(tokenizer, name)
        # Embeddings of the padding token are not trained, so it must not be the EOS token in the model.
        is_borrowed = name == "pad_token_id" and value == tokenizer.eos_token_id
        if value is not None and not is_borrowed:
            ids[name] = value
    if not config.is_encoder_decoder:
        return ids
    start: Any = getattr(config, "decoder_start_token_id", None)
    if start not in tokenizer.all_special_ids:
        ids["decoder_start_token_id"] = tokenizer.pad_token_id
    if getattr(config, "forced_eos_token_id", None) is not None:
        ids["forced_eos_token_id"] = tokenizer.eos_token_id
    return ids
