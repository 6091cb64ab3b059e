"""Tables in files: every format gives the same examples, cells are read as they are written, bad files are named."""

import json
import os

import datasets
import pytest

from gating.data.tables import read_file

ROWS = [("a tab is no comma, here", "x"), ('a "quoted" word', "y"), ("null", "NA"), ("", "y")]


@pytest.mark.parametrize("ending", ["csv", "tsv", "json", "jsonl", "parquet"])
def test_every_format_reads_the_same_rows(ending, tmp_path):
    table = datasets.Dataset.from_dict({"text": [t for t, _ in ROWS], "label": [x for _, x in ROWS]})
    path = tmp_path / f"rows.{ending}"
    if ending == "csv":
        table.to_csv(path)
    elif ending == "tsv":
        path.write_text("text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in ROWS))
    elif ending == "json":
        path.write_text(json.dumps(table.to_list()))
    elif ending == "jsonl":
        table.to_json(path)
    else:
        table.to_parquet(path)
    assert read_file("train", str(path)).to_list() == table.to_list()


@pytest.mark.parametrize(("ending", "between"), [("csv", ","), ("tsv", "\t")])
def test_cells_are_text_as_they_were_written(ending, between, tmp_path):
    rows = [("text", "label"), ("007", "01"), ("1e5", "1"), ("true", "9" * 30), ("2024-02-29", "nan"), ("None", "")]
    rows += [("x" * 150_000, "1")]
    path = tmp_path / f"rows.{ending}"
    path.write_text("".join(f"{text}{between}{label}\n" for text, label in rows), encoding="utf-8-sig")
    table = read_file("train", str(path))
    assert list(zip(table["text"][:], table["label"][:], strict=True)) == rows[1:]


def test_an_edited_file_with_the_same_time_of_writing_is_read_again(tmp_path):
    path = tmp_path / "train.csv"
    for label in ("first", "other"):
        path.write_text(f"text,label\na,{label}\nb,{label}\n")
        os.utime(path, (1_000_000_000, 1_000_000_000))
        assert read_file("train", str(path))["label"][:] == [label, label]


def test_one_column_may_have_a_separator_in_its_name(tmp_path):
    (tmp_path / "one.csv").write_text('"text; clean"\nHello\n')
    assert read_file("train", str(tmp_path / "one.csv"))[0] == {"text; clean": "Hello"}


def test_missing_cells_of_a_short_row_are_empty(tmp_path):
    (tmp_path / "short.csv").write_text("text,label\na,x\nb\n")
    assert read_file("train", str(tmp_path / "short.csv")).to_dict() == {"text": ["a", "b"], "label": ["x", ""]}
