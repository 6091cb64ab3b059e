"""Digests of data sets, files and folders, and the values of nested settings, for trainings that are resumed."""

import hashlib
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Rows and bytes that are hashed at once; of larger columns and files, evenly spread ones are, about a second of work.
_ROWS, _BLOCK, _MOST_BYTES, _MOST_FILES = 10_000, 2**20, 2**30, 20_000
_OF_MODELS = {".json", ".safetensors", ".bin", ".pt", ".txt", ".model", ".tiktoken", ".jinja", ".py"}
_OF_TRAINING = {"trainer_state.json", "training_args.bin", "optimizer.pt", "scheduler.pt"}


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
