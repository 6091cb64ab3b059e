"""Local files: tables by their extension, and texts."""

import csv
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, DatasetDict

from gating.errors import InputError, loading
from gating.storage.identity import file_digest

# Extensions of files without columns.
_PLAIN_TEXTS = (".txt", ".text", ".md")
# File extension -> builder of datasets and its options. Empty cells and words such as "null" are ordinary text.
_TABLE = {"keep_default_na": False, "na_values": []}
_BUILDERS: dict[str, tuple[str, dict[str, Any]]] = {
    ".csv": ("csv", {**_TABLE, "sep": ",", "quoting": csv.QUOTE_MINIMAL}),
    ".tsv": ("csv", {**_TABLE, "sep": "\t", "quoting": csv.QUOTE_NONE}),
    ".json": ("json", {}),
    ".jsonl": ("json", {}),
    ".parquet": ("parquet", {}),
}


def read_file(split: str, file: str) -> Dataset:
    """Read the table of a split; errors name its setting and file."""
    setting, path = f"data.{split}={file}", Path(file).expanduser()
    ending = path.suffix.lower()
    if not path.is_file():
        raise FileNotFoundError(f"{setting}: there is no such file.")
    if ending not in _BUILDERS:
        raise InputError(
            f"{setting}: cannot read {ending or 'a file without extension'} as a table; use {', '.join(_BUILDERS)}. "
            f"Texts without columns ({', '.join(_PLAIN_TEXTS)}) are read with data=text or data=sentences."
        )
    kind, options = _BUILDERS[ending]
    with loading(f"{setting}: the file", remedy="Correct it, or save it again in UTF-8."):
        if kind == "csv":
            options = {**options, "features": _text_columns(path, options)}
        # The reader of JSON ends the process at a null.
        elif kind == "json" and path.read_text(encoding="utf-8-sig").lstrip()[:1] not in ("{", "["):
            raise ValueError("it does not begin with a JSON object or list")
        # The cache knows files by path and time of writing: with a name of their content, edited ones are read again.
        builder = datasets.load_dataset_builder(kind, name=file_digest(path)[:16], data_files=str(path), **options)
        builder.download_and_prepare()
        return builder.as_dataset("train")


def read_splits(read: Callable[[str, str], Dataset], **files: str | None) -> DatasetDict:
    """Read the file of each split that has one."""
    return DatasetDict({split: read(split, file) for split, file in files.items() if file is not None})


def read_lines(split: str, file: str) -> Dataset:
    """Read a file of texts: a plain file has one in each line, and a table in each row."""
    table = read_texts(split, file)
    if Path(file).suffix.lower() not in _PLAIN_TEXTS:
        return table
    return Dataset.from_dict({"text": [line.strip() for line in table["text"][0].splitlines() if line.strip()]})


def read_texts(split: str, file: str) -> Dataset:
    """Read a file of texts: a plain file is one text, and a table has one in each row."""
    path = Path(file).expanduser()
    if path.suffix.lower() not in _PLAIN_TEXTS or not path.is_file():
        return read_file(split, file)
    with loading(f"data.{split}={file}: the file", remedy="Save it in UTF-8."):
        # Without the mark that some editors put at the beginning.
        text = path.read_text(encoding="utf-8-sig")
    if not text.strip():
        raise InputError(f"data.{split}={file}: the file is empty.")
    return Dataset.from_dict({"text": [text]})


def _text_columns(path: Path, options: Mapping[str, Any]) -> datasets.Features:
    """Return features that read all columns as text, so that ``007`` stays text and class 01 differs from 1.

    Where the first row is longer than the header, pandas would read its first field as an index.
    """
    csv.field_size_limit(2**31 - 1)
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = (row for row in csv.reader(file, delimiter=options["sep"], quoting=options["quoting"]) if row)
        header, first = next(rows, []), next(rows, [])
    if len(first) > len(header) or len(set(header)) < len(header):
        raise ValueError(f"its header has {len(set(header))} different names, and its first row {len(first)} fields")
    names = [name or f"Unnamed: {index}" for index, name in enumerate(header)]
    return datasets.Features(dict.fromkeys(names, datasets.Value("string")))
