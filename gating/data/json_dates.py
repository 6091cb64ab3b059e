"""Dates in JSON files, which stay the texts that they are."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.json as paj
from datasets.packaged_modules.json import json as reader

__all__ = ["dates_as_written"]


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
