"""Digests of data sets, files and folders, and the comparison of settings, for trainings that are resumed."""

import hashlib
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gating.errors import InputError, shorten

# Rows and bytes that are hashed at once; of larger columns and files, evenly spread ones are, about a second of work.
_ROWS, _BLOCK, _MOST_BYTES, _MOST_FILES = 10_000, 2**20, 2**30, 20_000
_OF_MODELS = {".json", ".safetensors", ".bin", ".pt", ".txt", ".model", ".tiktoken", ".jinja", ".py"}
_OF_TRAINING = {"trainer_state.json", "training_args.bin", "optimizer.pt", "scheduler.pt"}
# In these settings, 1 is one batch and 1.0 is all of them; 1 and 1.0 are the same value of any other setting.
_NUMBERS_OR_SHARES = (
    *("limit_train_batches", "limit_val_batches", "limit_test_batches", "limit_predict_batches"),
    *("overfit_batches", "val_check_interval"),
)


def table_digests(table: Any) -> dict[str, str | int]:
    """Return the number of rows of a ``datasets.Dataset``, and a digest of each column."""
    columns = {name: table.select_columns([name]).with_format("arrow") for name in table.column_names}
    return {"num_rows": len(table), **{name: _column_digest(column) for name, column in columns.items()}}


def file_digest(path: Path) -> str:
    """Return a digest of a file's content; of a large file, of evenly spread blocks and its size."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for start in range(0, size, _BLOCK * (-(-size // _MOST_BYTES) or 1)):
            file.seek(start)
            digest.update(file.read(_BLOCK))
    return digest.hexdigest()


def folder_digests(folder: Path) -> dict[str, str | int]:
    """Return a digest of each file of a model, tokenizer or processor in a folder; a card or a log changes nothing."""
    paths = (path for path in sorted(folder.iterdir()) if path.suffix in _OF_MODELS and path.is_file())
    return {path.name: file_digest(path) for path in paths if path.name not in _OF_TRAINING}


def _column_digest(column: Any) -> str:
    pa = importlib.import_module("pyarrow")  # Installed where a data set of its kind is.
    digest, starts = hashlib.sha256(), range(0, len(column), _ROWS)
    for start in starts[:: -(-column[:_ROWS].nbytes * len(starts) // _MOST_BYTES) or 1]:
        rows = column[start : start + _ROWS].replace_schema_metadata(None)
        if pa.types.is_struct(rows.field(0).type) and {"bytes", "path"} <= {one.name for one in rows.field(0).type}:
            # Images or sounds, which are in the table or in files at any place.
            for one in rows.column(0)[:: -(-len(column) // _MOST_FILES)].to_pylist():
                content, path = (one or {}).get("bytes"), (one or {}).get("path")
                known = file_digest(Path(path)) if path and Path(path).is_file() else repr(path)
                digest.update(known.encode() if content is None else hashlib.sha256(content).digest())
            continue
        # Copied first, because the serialization of a slice depends on the buffers that it is a part of.
        for batch in pa.concat_tables([rows, rows.slice(0, 0)]).combine_chunks().to_batches():
            digest.update(batch.serialize())
    return digest.hexdigest()


def check_same_settings(
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    *,
    stored: str,
    present: str,
    remedy: str,
) -> None:
    """Raise ``InputError`` if a setting that changes the result differs.

    Example:
        >>> check_same_settings(
        ...     {"seed": 0}, {"seed": 1}, stored="The run in x has", present="this command", remedy="Leave it out."
        ... )  # doctest: +IGNORE_EXCEPTION_DETAIL
        Traceback (most recent call last):
        InputError: The run in x has seed=0, and this command seed=1
    """
    changed = find_difference(before, now)
    if changed is not None:
        name, *values = changed
        one, other = (shorten(str(value), most=200) for value in values)
        raise InputError(
            f"{stored} {name}={one}, and {present} {name}={other}: it is resumed with the settings that it began with. "
            f"{remedy}"
        )


def find_difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """Return the first setting that differs: its dotted name and both values, None if it is missing."""
    old, new = dict(leaves(before)), dict(leaves(now))
    for name in old | new:
        one, other = old.get(name), new.get(name)
        if one != one and other != other:  # NaN equals itself here.
            continue
        is_share = name.rpartition(".")[2] in _NUMBERS_OR_SHARES
        if one != other or (is_share and isinstance(one, float) != isinstance(other, float)):
            return name, one, other
    return None


def leaves(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Return the values of nested settings with their dotted names.

    Example:
        >>> leaves({"seed": 0, "optimizer": {"lr": 0.1}})
        [('seed', 0), ('optimizer.lr', 0.1)]
    """
    found: list[tuple[str, Any]] = []
    for name, value in settings.items():
        found += leaves(value, f"{prefix}{name}.") if isinstance(value, Mapping) else [(f"{prefix}{name}", value)]
    return found
