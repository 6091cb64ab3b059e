"""Data sets of the benchmarks, made from local copies in the format of the hub, and taken from a folder."""

import importlib
import os
from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset, Features, List, Value

from tests.support.tiny_run import ROOT

data = importlib.import_module("benchmarks.data")
DATA = Path(os.environ.get("HEAD_GATING_DATA", ROOT.parent / "shared" / "data"))
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="there is no folder with the data sets")
COARSE, KINDS = ["DESC", "ENTY", "ABBR", "HUM", "NUM", "LOC"], ["corporation", "person", "product", "group", "location"]
TAGS = ["O", *(f"{place}-{kind}" for kind in (*KINDS, "creative-work") for place in "BI")]


def table(name: str, *splits: str) -> list[list[str]]:
    """Return the rows of a data set at hand."""
    texts = [(DATA / name / f"{split}.tsv").read_bytes().decode() for split in splits]
    return [line.split("\t") for text in texts for line in text.split("\n")[1:-1]]


def hub_copy(name: str, split: str) -> Dataset:
    """Return a data set as the hub has it; more and other rows than are chosen where a rule chooses."""
    if name == "tinyshakespeare":
        return Dataset.from_dict({"text": [(DATA / name / f"{split}.txt").read_bytes().decode()]})
    chosen = {"trec": ("validation", "train"), "snli20k": ("test", "validation", "train")}.get(name, (split,))
    rows = table(name, *((split,) if name == "trec" and split == "test" else chosen))
    if name == "sick":
        names, kinds = ("sentence_A", "sentence_B", "label", "relatedness_score"), (str, str, int, float)
    elif name == "snli20k":
        rows, names, kinds = [["a", "b", "-1"], *rows, *rows[:9]], ("premise", "hypothesis", "label"), (str, str, int)
    elif name == "multi30k":
        names, kinds = ("en", "de"), (str, str)
    elif name == "sst2_sentence":
        rows = [[text.replace("(", "-lrb-").replace(")", "-rrb-"), label] for text, label in rows]
        names, kinds = ("text", "label"), (str, int)
    elif name == "wnut17":
        tags = Features({"tokens": List(Value("string")), "ner_tags": List(ClassLabel(names=TAGS))})
        return Dataset.from_list(
            [{"tokens": words.split(" "), "ner_tags": labels.split(" ")} for words, labels in rows], features=tags
        )
    else:
        fine = sorted({fine for _, _, fine in table(name, *data.SPLITS)}, reverse=True)
        labels = {"coarse_label": ClassLabel(names=COARSE), "fine_label": ClassLabel(names=fine)}
        made = [{"text": text, "coarse_label": kind.split(":")[0], "fine_label": kind} for text, _, kind in rows]
        return Dataset.from_list(made, features=Features({"text": Value("string"), **labels}))
    columns = zip(*rows, strict=True)
    made = {name: [kind(one) for one in column] for name, kind, column in zip(names, kinds, columns, strict=True)}
    return Dataset.from_dict(made)


@pytest.mark.parametrize("name", data.SOURCES)
def test_files_of_the_pages_are_made_from_the_hub(name, tmp_path, monkeypatch):
    for split in data.SPLITS:
        folder = tmp_path / data.SOURCES[name].hub
        folder.mkdir(parents=True, exist_ok=True)
        hub_copy(name, split).to_parquet(folder / f"{split}.parquet")
    # A folder with the name of a data set is loaded in its place.
    monkeypatch.chdir(tmp_path)
    list(data.write(name, data.SOURCES[name], tmp_path / "out", folder=None))
    for path in (DATA / name).glob("*.t*"):
        assert (tmp_path / "out" / name / path.name).read_bytes() == path.read_bytes()


def test_files_come_from_a_folder_if_they_are_those_of_the_pages(tmp_path):
    source, out = data.SOURCES["trec"], tmp_path / "out"
    assert len(list(data.write("trec", source, out, folder=DATA))) == len(data.SPLITS)
    assert all("is there" in line for line in data.write("trec", source, out, folder=tmp_path))
    (tmp_path / "trec").mkdir()
    (tmp_path / "trec" / "train.tsv").write_text("text\tlabel\n")
    with pytest.raises(ValueError, match="is not the data of the pages"):
        list(data.write("trec", source, tmp_path / "other", folder=tmp_path))
