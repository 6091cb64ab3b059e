"""Tables in local files, by file extension."""

import csv
import filecmp
import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.json as paj
import pyarrow.parquet as pq
from datasets import Dataset
from datasets.packaged_modules.json import json as reader

from gating.distributed.collectives import is_rank_zero
from gating.errors import InputError, MissingFileError, shorten
from gating.storage.identity import file_digest

__all__ = ["dates_as_written", "read_file", "warn_of_same_files"]

_log = logging.getLogger(__name__)

# File extension -> builder of datasets and its options. Empty cells and words such as "null" are ordinary text.
_TABLE = {"keep_default_na": False, "na_values": []}
_BUILDERS: dict[str, tuple[str, dict[str, object]]] = {
    ".csv": ("csv", _TABLE),
    ".tsv": ("csv", {**_TABLE, "sep": "\t", "quoting": 3}),
    ".json": ("json", {}),
    ".jsonl": ("json", {}),
    ".parquet": ("parquet", {}),
}
# Characters between columns in the files of other programs.
_DELIMITERS = {"semicolons": ";", "tabs": "\t", "commas": ",", "bars": "|"}


def read_file(split: str, file: str, *, also: Sequence[str] = ()) -> Dataset:
    """Read a table.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file is empty or cannot be read.
    """
    setting, path = f"data.{split}={file}", Path(file).expanduser()
    if not path.is_file():
        raise MissingFileError(f"{setting}: there is no such file.")
    if path.suffix.lower() not in _BUILDERS:
        raise InputError(
            f"{setting}: cannot read {path.suffix or 'a file without extension'}; use {', '.join([*also, *_BUILDERS])}."
        )
    kind, options = _BUILDERS[path.suffix.lower()]
    _check_content(path.read_bytes(), setting, is_json=kind == "json")
    if kind == "csv":
        options = {**options, "features": _text_columns(path, setting)}
    try:
        table = _build(kind, path, options)
    except Exception as error:  # The readers, and decompression of files that look compressed, raise many types.
        cause = error.__cause__ or error
        reason = " ".join(str(cause).split()).rstrip(".")
        remedy = " Save it as UTF-8." if isinstance(cause, UnicodeDecodeError) else ""
        raise InputError(f"{setting}: the file cannot be read ({reason}).{remedy}") from error
    if table is None:
        raise InputError(f"{setting}: the file has no rows.")
    return table


def _build(kind: str, path: Path, options: Mapping[str, Any]) -> Dataset | None:
    """Return a table, from the cache of ``datasets`` if it was read before; None if it has no rows."""
    # datasets raises an error for tables without rows: in these two ways they are recognized beforehand.
    if kind == "parquet" and not pq.read_metadata(path).num_rows:
        return None
    # The cache knows files by path and time of writing: named by their content, edited ones are read again in any case.
    name = f"{file_digest(path)[:16]}-as-written"  # Without the addition, caches of before have dates of JSON as times.
    builder = datasets.load_dataset_builder(kind, name=name, data_files=str(path), **options)
    with dates_as_written():
        builder.download_and_prepare()
    return builder.as_dataset("train") if builder.info.splits["train"].num_examples else None


def _check_content(content: bytes, setting: str, *, is_json: bool) -> None:
    """Check that a file is not empty, and that a JSON file can be passed to the reader."""
    if not content.strip():
        raise InputError(f"{setting}: the file is empty.")
    if not is_json:
        return
    if content.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] not in (b"{", b"["):
        # Some other values crash the process of the reader.
        raise InputError(f"{setting}: the file cannot be read (it does not begin with a JSON object or list).")
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{setting}: the file cannot be read ({error}). Save it as UTF-8.") from error


def warn_of_same_files(files: Mapping[str, str | None]) -> None:
    """Warn, on rank 0, if splits have the same file or copies of it."""
    given = [(split, file, Path(file).expanduser()) for split, file in files.items() if file is not None]
    same = [
        f"data.{split}={file} and data.{other_split}={other_file}"
        for (split, file, path), (other_split, other_file, other_path) in combinations(given, 2)
        if path.samefile(other_path) or filecmp.cmp(path, other_path, shallow=False)
    ]
    if same and is_rank_zero():
        _log.warning(
            f"{'; '.join(same)} are the same: metrics measure memorization, not performance on new "
            "examples. Give another file, or leave the second one out."
        )


def _first_rows(path: Path, dialect: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Return the names of the columns, and the first row."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = (row for row in csv.reader(file, **dialect) if row)
        return next(rows), next(rows, [])


def _other_delimiter(path: Path) -> str | None:
    """Return the name of the characters that divide the header of a file, and its first row, into as many columns."""
    for name, mark in _DELIMITERS.items():
        header, first = _first_rows(path, {"delimiter": mark})
        if all(header) and len(header) == len(first) > 1:
            return name
    return None


def _text_columns(path: Path, setting: str) -> datasets.Features | None:
    """Return features that read all columns as text, so that ``007`` stays text and class 01 differs from 1."""
    csv.field_size_limit(2**31 - 1)
    dialect: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if path.suffix.lower() == ".tsv" else {}
    try:
        header, first = _first_rows(path, dialect)
        other = _other_delimiter(path) if len(header) == 1 else None
    except (UnicodeDecodeError, csv.Error, StopIteration):
        return None  # The reader of the whole file reports the reason.
    if other is not None:
        raise InputError(
            f"{setting}: the columns {shorten(repr(header[0]))} are separated by {other}. Save the file with commas "
            "between its columns as csv, or with tabs as tsv."
        )
    twice = next((name for name in header if header.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"{setting}: the file has two columns {twice!r}. Rename one of them.")
    if len(first) > len(header):
        # The reader would take the first column as an index.
        raise InputError(
            f"{setting}: the first row has {len(first)} fields, and there are {len(header)} columns. Put quotes around "
            "texts with commas in a csv file; texts in a tsv file have no tabs."
        )
    names = [name or f"Unnamed: {index}" for index, name in enumerate(header)]
    return datasets.Features(dict.fromkeys(names, datasets.Value("string")))


@contextmanager
def dates_as_written() -> Iterator[None]:
    """Read texts that look like dates as texts in a ``with`` block; ``datasets`` makes times in UTC of them."""
    # The reader has no option for that, and its result no longer has the original texts.
    reader.paj = SimpleNamespace(read_json=_read_json, ReadOptions=paj.ReadOptions)
    try:
        yield
    finally:
        reader.paj = paj


def _read_json(file: io.BytesIO, *, read_options: paj.ReadOptions) -> pa.Table:
    content = file.getvalue()
    table = paj.read_json(io.BytesIO(content), read_options=read_options)
    schema = pa.schema([field.with_type(_without_dates(field.type)) for field in table.schema])
    if schema == table.schema:
        return table
    options = paj.ParseOptions(explicit_schema=schema)
    return paj.read_json(io.BytesIO(content), read_options=read_options, parse_options=options)


def _without_dates(kind: pa.DataType) -> pa.DataType:
    """Return a type with texts in place of dates, also in lists and tables."""
    if pa.types.is_timestamp(kind):
        return pa.string()
    if pa.types.is_list(kind):
        return pa.list_(_without_dates(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_without_dates(field.type)) for field in kind])
    return kind
