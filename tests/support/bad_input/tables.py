"""Bad tables, files, labels and texts."""

import datetime
import decimal
import functools
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import transformers
from hypothesis import strategies as st

from gating.data.labels import encode_labels
from gating.data.sources import load_files
from tests.support.bad_input.cases import place, prepare, write

# Columns of unusual types.

MOMENT = datetime.datetime(2024, 2, 29, 12, 30)
VALUES_BY_TYPE: dict[str, tuple[pa.DataType, list[Any]]] = {
    "text": (pa.string(), ["one", "two", "", "null", "3"]),
    "large text": (pa.large_string(), ["one", "two"]),
    "whole": (pa.int64(), [0, 1, -5, 2**62]),
    "small": (pa.uint8(), [0, 1, 255]),
    "fraction": (pa.float64(), [0.0, 1.0, 0.5, math.nan, math.inf]),
    "half": (pa.float32(), [0.0, 1.0]),
    "truth": (pa.bool_(), [True, False]),
    "date": (pa.date32(), [MOMENT.date()]),
    "moment": (pa.timestamp("us"), [MOMENT]),
    "duration": (pa.duration("s"), [datetime.timedelta(seconds=5)]),
    "decimal": (pa.decimal128(9, 2), [decimal.Decimal("1.50"), decimal.Decimal("2.00")]),
    "bytes": (pa.binary(), [b"one", b"\xff\xfe"]),
    "list": (pa.list_(pa.string()), [["one"], []]),
    "nested": (pa.list_(pa.list_(pa.int64())), [[[1], []]]),
    "struct": (pa.struct({"x": pa.int64()}), [{"x": 1}, {"x": None}]),
    "nothing": (pa.null(), [None]),
    "category": (pa.dictionary(pa.int32(), pa.string()), ["one", "two"]),
}


@st.composite
def typed_column(draw: st.DrawFn, rows: int) -> tuple[str, list[Any]]:
    kind = draw(st.sampled_from(sorted(VALUES_BY_TYPE)))
    values = st.sampled_from(VALUES_BY_TYPE[kind][1])
    may_miss = draw(st.integers(0, 3)) == 0
    return kind, draw(st.lists(st.none() | values if may_miss else values, min_size=rows, max_size=rows))


@st.composite
def typed_tables(draw: st.DrawFn) -> dict[str, tuple[str, list[Any]]]:
    rows = draw(st.integers(1, 5))
    plain = draw(st.sampled_from(["neither", "text", "label"]))
    columns = {"text": draw(typed_column(rows)), "label": draw(typed_column(rows))}
    if plain != "neither":
        columns[plain] = "text", [f"word{row % 2}" for row in range(rows)]
    return columns


def try_types(columns: Mapping[str, tuple[str, list[Any]]]) -> None:
    arrays = {name: pa.array(values, VALUES_BY_TYPE[kind][0]) for name, (kind, values) in columns.items()}
    path = Path(write("table.parquet", b""))
    pq.write_table(pa.table(arrays), path)
    examples = load_files(train=str(path), validation=str(path))
    prepare(examples.splits)
    # Other values than words, numbers and dates would be learned as their Python spelling.
    assert columns["text"][0] not in ("bytes", "list", "nested", "struct", "nothing")
    assert columns["label"][0] not in ("bytes", "list", "nested", "struct", "nothing", "fraction") or not any(
        isinstance(label, float) and not label.is_integer() for label in columns["label"][1]
    )


# Malformed files.

PIECES = ["text", "label", "word1", "first", "second", "null", "NaN", "1e999", *",\t\n\"'{}[]: 1\\\ufeff\x00é#;-"]
PIECES += ["\r\n", "\U0001f600", '{"text": "a", "label": "first"}']
BYTES = [b"\xff", b"\xfe\xff", b"\xc3", b"\x80", b"PAR1", b"\x1f\x8b"]
HEADS = ["", "text,label\n", "text\tlabel\n", "text_a,text_b,label\n", '[{"text": "a", "label": "b"},', "label,text\n"]


_ROWS = [{"text": f"word{row} word2", "label": ("first", "second")[row % 2]} for row in range(4)]
_LINES = [json.dumps(row) for row in _ROWS]
_TABLE = "text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in _ROWS)
GOOD = {".csv": [_TABLE], ".tsv": [_TABLE.replace(",", "\t")], ".jsonl": ["\n".join(_LINES)]}
GOOD |= {".json": [f"[{','.join(_LINES)}]", *GOOD[".jsonl"]], ".parquet": [_TABLE], ".txt": [_TABLE], "": [_TABLE]}


@st.composite
def malformed_files(draw: st.DrawFn) -> tuple[str, bytes]:
    ending = draw(st.sampled_from([".csv", ".tsv", ".json", ".jsonl", ".parquet", ".CSV", ".txt", ""]))
    text = draw(st.sampled_from(HEADS)) + "".join(draw(st.lists(st.sampled_from(PIECES), max_size=30)))
    if draw(st.booleans()):
        # A good file with something in the middle of it.
        text, where = draw(st.sampled_from(GOOD[ending.lower()])), draw(st.floats(0, 1))
        middle = int(where * len(text))
        text = text[:middle] + draw(st.sampled_from(["", *PIECES])) + text[middle:]
    content = text.encode(draw(st.sampled_from(["utf-8", "utf-8", "utf-8", "utf-16", "latin-1"])), errors="replace")
    position = draw(st.integers(0, len(content)))
    return ending, content[:position] + draw(st.sampled_from([b"", b"", *BYTES])) + content[position:]


def try_file(case: tuple[str, bytes]) -> None:
    ending, content = case
    path = write(f"table{ending}", content)
    prepare(load_files(train=path, validation=path).splits)


# Labels.

LABEL = (
    st.sampled_from(["first", "second"])
    | st.sampled_from(["first", "second", "", " ", "0", "1", "01", "-", "--1", "²", "٣", "None", "nan", "x" * 300])
    | st.integers(-2, 3)
    | st.sampled_from([0.0, 1.0, 0.5, -1.0, 1e300])
    | st.booleans()
    | st.none()
    | st.text(max_size=4)
    | st.sampled_from([[1], {"x": 1}, []])
)


def try_labels(case: tuple[list[Any], list[Any]]) -> None:
    splits = {}
    for name, labels in zip(("train", "validation"), case, strict=True):
        lines = "".join(json.dumps({"text": "word1", "label": label}) + "\n" for label in labels)
        splits[name] = load_files(train=(path := write("t.jsonl", lines.encode())), validation=path).splits["train"]
    encoded, names = encode_labels(datasets.DatasetDict(splits))
    assert len(names) == len(set(names)) >= 2
    for table, labels in zip(encoded.values(), case, strict=True):
        for number, label in zip(table["label"], labels, strict=True):
            # Beside words, numbers are words as well.
            assert names[number] in (str(label), str(int(label)) if isinstance(label, float) else str(label))


# Texts.

STRANGE = ["", " ", "\n", "\x00", "[SEP] [MASK]", "\u202e\u200b", "\ufffe", "e\u0301" * 50, "<s>"]
TEXT = st.text(max_size=20) | st.sampled_from([*STRANGE, "word1 " * 2000, "x" * 10_000])


@st.composite
def texts(draw: st.DrawFn) -> tuple[list[str], list[str] | None, int]:
    rows = draw(st.integers(2, 5))
    columns = [draw(st.lists(TEXT, min_size=rows, max_size=rows)) for _ in range(2)]
    length = draw(st.sampled_from([-1, 0, 1, 2, 3, 4, 16, 128, 512, 10**12]))
    return columns[0], columns[1] if draw(st.booleans()) else None, length


def try_texts(case: tuple[list[str], list[str] | None, int]) -> None:
    first, second, length = case
    columns: dict[str, list[Any]] = {"text": first, "label": [row % 2 for row in range(len(first))]}
    if second is not None:
        columns["text_pair"] = second
    table = datasets.Dataset.from_dict(columns)
    prepared = prepare({"train": table, "validation": table}, max_length=length)
    batch = prepared.collate([prepared.splits["train"][index] for index in range(len(first))])
    with torch.no_grad():
        assert tiny_bert()(**batch).logits.isfinite().all()


@functools.cache
def tiny_bert() -> Any:
    model = transformers.AutoModelForSequenceClassification.from_pretrained(place() / "model")
    return model.eval()
