"""Local files: tables by their extension, and texts."""

import csv
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, DatasetDict

from gating.errors import InputError, UserError, shorten
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
    """Read a table.

    Args:
        split: Name of the split, whose setting and file are named in errors.
        file: The file.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file is empty or cannot be read.
    """
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
    with reading(f"{setting}: the file"):
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
    with reading(f"data.{split}={file}: the file"):
        # Without the mark that some editors put at the beginning.
        text = path.read_text(encoding="utf-8-sig")
    if not text.strip():
        raise InputError(f"data.{split}={file}: the file is empty.")
    return Dataset.from_dict({"text": [text]})


@contextmanager
def reading(source: str, *, remedy: str = "") -> Iterator[None]:
    """Raise any error of a reader in a ``with`` block as :class:`InputError` with the setting of its source."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # The readers, and decompression of files that look compressed, raise many types.
        cause = error.__cause__ or error
        reason = " ".join(str(cause).split()).rstrip(".") or type(cause).__name__
        if isinstance(cause, UnicodeDecodeError):
            reason = f"it is not in UTF-8: {reason}"
        raise InputError(f"{source} cannot be read ({reason}).{remedy}") from error


def _text_columns(path: Path, options: Mapping[str, Any]) -> datasets.Features:
    """Return features that read all columns as text, so that ``007`` stays text and class 01 differs from 1.

    Raises:
        ValueError: Columns have another separator, or the same name, or the first row is longer than the header, of
            which pandas would read the first field as an index.
    """
    csv.field_size_limit(2**31 - 1)
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = (row for row in csv.reader(file, delimiter=options["sep"], quoting=options["quoting"]) if row)
        header, first = next(rows, []), next(rows, [])
    other = next((separator for separator in ",;\t|" if separator in "".join(header)), options["sep"])
    numbers = {"".join(row).count(other) for row in (header, first)}
    if len(header) == 1 and other != options["sep"] and len(numbers) == 1:
        raise ValueError(
            f"its header, {shorten(repr(header[0]))}, is one column: separate columns by {options['sep']!r}, in place "
            f"of {other!r}"
        )
    if len(first) > len(header) or len(set(header)) < len(header):
        raise ValueError(f"its header has {len(set(header))} different names, and its first row {len(first)} fields")
    names = [name or f"Unnamed: {index}" for index, name in enumerate(header)]
    return datasets.Features(dict.fromkeys(names, datasets.Value("string")))
