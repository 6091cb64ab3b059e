"""Identity of data sets, files and folders by their content, wherever they lie and whenever they were written."""

import hashlib
import importlib
import os
from pathlib import Path
from typing import Any

__all__ = ["NUM_ROWS", "file_digest", "folder_digests", "table_digests"]

NUM_ROWS = "num_rows"
# Rows of a table that are hashed at once, whatever chunks it was read in.
_ROWS = 10_000
_BLOCK = 2**20
# Blocks of this size in all are hashed of larger columns and files, evenly spread. It takes about a second.
_MOST_BYTES = 2**30
# Evenly spread files are read of columns with more; names and sizes of files cannot tell columns apart.
_MOST_FILES = 20_000
# These columns follow from others.
_DERIVED = {"attention_mask", "token_type_ids", "special_tokens_mask", "metric_offsets", "metric_cls_index"}
# Files of a model, tokenizer or processor; a card or a log changes nothing.
_OF_MODELS = {".json", ".safetensors", ".bin", ".pt", ".txt", ".model", ".tiktoken", ".jinja", ".py"}
_OF_TRAINING = {"trainer_state.json", "training_args.bin", "optimizer.pt", "scheduler.pt"}


def table_digests(table: Any) -> dict[str, str | int] | None:
    """Return the number of rows of a data set and a digest of each column.

    Copies of a data set have equal digests, whatever files, caches and chunks they were read from. Of another data set
    than a ``datasets.Dataset``, whose format and transform are not applied, only the number of rows is known.

    Returns:
        The digests by column; None for a data set that is a stream, or None.
    """
    if table is None or not hasattr(table, "__len__"):
        return None
    digests: dict[str, str | int] = {NUM_ROWS: len(table)}
    if hasattr(table, "with_format") and hasattr(table, "column_names"):
        names = [name for name in table.column_names if name not in _DERIVED]
        digests |= {name: _column_digest(table.with_format("arrow"), name) for name in names}
    return digests


def file_digest(path: Path) -> str:
    """Return a digest of a file's content; of a large file, of evenly spread blocks and its size."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        digest = hashlib.sha256(str(size).encode())
        for start in range(0, size, _BLOCK * _step(size)):
            file.seek(start)
            digest.update(file.read(_BLOCK))
    return digest.hexdigest()


def folder_digests(folder: Path) -> dict[str, str | int]:
    """Return a digest of each file of a model, tokenizer or processor in a folder."""
    paths = (path for path in sorted(folder.iterdir()) if path.suffix in _OF_MODELS and path.is_file())
    return {path.name: file_digest(path) for path in paths if path.name not in _OF_TRAINING}


def _step(size: int) -> int:
    """Return the distance of hashed blocks, in blocks."""
    return -(-size // _MOST_BYTES) or 1


def _column_digest(table: Any, name: str) -> str:
    pyarrow = importlib.import_module("pyarrow")  # Installed where a data set of its kind is.
    digest = hashlib.sha256()
    column = table.select_columns([name])
    starts = range(0, len(column), _ROWS)
    first = column[:_ROWS][name]
    step = _step(first.nbytes * len(starts))
    for start in starts[::step]:
        rows = column[start : start + _ROWS]
        if {"bytes", "path"} <= {field.name for field in _fields(first.type)}:
            _add_files(digest, rows[name], step=-(-len(column) // _MOST_FILES))
            continue
        # Copied first, because the serialization of a slice depends on the buffers that it is a part of.
        rows = rows.replace_schema_metadata(None)
        copied = pyarrow.concat_tables([rows, rows.slice(0, 0)]).combine_chunks()
        for batch in copied.to_batches():
            digest.update(batch.serialize())
    return digest.hexdigest()


def _fields(kind: Any) -> list[Any]:
    """Return the fields of an Arrow type; none unless it is a struct."""
    return list(kind) if hasattr(kind, "get_field_index") else []


def _add_files(digest: Any, column: Any, *, step: int) -> None:
    """Add the content of images or sounds, which are in the table or in files at any place."""
    for value in column.take(list(range(0, len(column), step))).to_pylist():
        content, path = (value or {}).get("bytes"), (value or {}).get("path")
        if content is not None:
            digest.update(hashlib.sha256(content).digest())
        elif path is not None and Path(path).is_file():
            digest.update(file_digest(Path(path)).encode())
        else:
            digest.update(repr(path).encode())
