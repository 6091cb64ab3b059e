"""Columns that a model computes of all examples once, kept in the cache of ``datasets``."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset
from datasets.fingerprint import Hasher
from torch import nn

from gating.compact.manifest import digest_tensors


def computed_column(
    name: str,
    compute: Callable[[Sequence[int]], Any],
    *,
    num_rows: int,
    dtype: str,
    key: object,
    batch_size: int,
    title: str,
) -> Dataset:
    """Return a table of one column, whose values are vectors, from the cache if they are there.

    Args:
        name: Name of the column.
        compute: Function from numbers of rows to their values, ``[rows, width]``.
        num_rows: Number of rows.
        dtype: Name of the type of the numbers, such as ``float16``.
        key: All that decides the values; equal keys have equal values.
        batch_size: Number of rows for each call of ``compute``.
        title: Title of the progress bar.
    """
    fingerprint = Hasher.hash((name, key))
    return Dataset.from_dict({"row": range(num_rows)}).map(
        lambda rows: {name: compute(rows["row"])},
        batched=True,
        batch_size=batch_size,
        remove_columns=["row"],
        features=datasets.Features({name: datasets.List(datasets.Value(dtype))}),
        new_fingerprint=fingerprint,
        cache_file_name=cache_file(fingerprint),
        desc=title,
    )


def cache_file(fingerprint: str) -> str:
    """Return the path of a table in the cache of ``datasets``."""
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "head-gating"
    folder.mkdir(parents=True, exist_ok=True)
    return str(folder / f"{fingerprint}.arrow")


def model_digest(model: nn.Module, *settings: object) -> str:
    """Return a digest of a model's weights and of settings, by their texts."""
    weights = digest_tensors(sorted(model.state_dict().items()))
    return hashlib.sha256(f"{settings!r}\n{weights}".encode()).hexdigest()
