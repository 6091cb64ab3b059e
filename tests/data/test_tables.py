"""Tables in files: every format gives the same examples, cells are read as they are written, bad files are named."""

import json
import os

import datasets
import pytest

from gating.data.tables import read_file
from gating.errors import InputError, MissingFileError

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


def test_a_column_of_numbers_without_a_name_and_one_column_of_any_name_are_read(tmp_path):
    (tmp_path / "frame.csv").write_text(",text,label\n0,a,x\n1,b,y\n")
    assert read_file("train", str(tmp_path / "frame.csv")).column_names == ["Unnamed: 0", "text", "label"]
    (tmp_path / "one.csv").write_text("body;of;a;post\nHello; you\n")
    assert read_file("train", str(tmp_path / "one.csv")).to_dict() == {"body;of;a;post": ["Hello; you"]}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.csv", b"  \n", "cannot be read"),
        ("header.csv", b"text,label\n", "no data"),
        ("odd.xlsx", b"x", r"\.xlsx.*\.parquet"),
        ("plain.txt", b"text,label\na,x\n", r"\.txt as a table.*data=text or data=sentences"),
        ("broken.json", b"{", "cannot be read"),
        ("null.json", b"null", "JSON object or list"),
        ("null.jsonl", b"\xef\xbb\xbf\nnull\n", "JSON object or list"),
        ("empty.json", b"", "cannot be read"),
        ("latin.json", b'{"text": "\xff", "label": "a"}', "utf-8"),
        ("latin.csv", "text,label\ncaf\u00e9,x\n".encode("latin-1"), "utf-8"),
        ("comma.csv", b"text,label\nHello, world,x\nYes, sir,y\n", "2 different names.* 3 fields"),
        ("tab.tsv", b"text\tlabel\n1\tx\ty\n2\tx\ty\n", "2 different names.* 3 fields"),
        ("longer.csv", b"text,label\na,x\nb,c,y\n", "Expected 2 fields in line 3, saw 3"),
        ("semicolons.csv", b"text;label\nHello, you;x\n", "separated by semicolons"),
        ("tabs.csv", b"text\tlabel\na\tx\n", "separated by tabs"),
        ("commas.tsv", b'text,label\n"Hello, you",x\n', "separated by commas"),
        ("twice.csv", b"text,text,label\na,b,x\n", "2 different names.* 3 fields"),
        ("zip.csv", b"PK\x03\x04text,label\na,x\n", "cannot be read"),
        ("gzip.tsv", b"\x1f\x8btext", "cannot be read"),
        ("noise.parquet", b"noise", "cannot be read"),
    ],
)
def test_unreadable_files_are_named_with_their_setting(name, content, message, tmp_path):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_file("test", str(path))
    assert str(caught.value).startswith(f"data.test={path}: ")
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named():
    with pytest.raises(MissingFileError, match=r"data\.train=nowhere\.csv"):
        read_file("train", "nowhere.csv")


def test_an_edited_file_with_the_same_time_of_writing_is_read_again(tmp_path):
    path = tmp_path / "train.csv"
    for label in ("first", "other"):
        path.write_text(f"text,label\na,{label}\nb,{label}\n")
        os.utime(path, (1_000_000_000, 1_000_000_000))
        assert read_file("train", str(path))["label"][:] == [label, label]
