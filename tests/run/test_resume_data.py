"""A run resumes with the data, the model and the teacher that it began with, wherever they lie, or is refused."""

import json
import shutil
from pathlib import Path

import pytest

from gating.commands.evaluate import evaluate_folder
from gating.run.inputs import data_differ
from tests.support.interruptions import Interrupted, at_batch, end_of, interrupt, run_in
from tests.support.resumed import recalled, resume
from tests.support.tiny_run import make_inputs, make_model_folder, write_table

pytestmark = pytest.mark.runs

SHORT = ["trainer.max_steps=4", "trainer.val_check_interval=1"]


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory) -> tuple[Path, Path]:
    """The working directory of a run that ended at its third step, and a copy of it."""
    place = tmp_path_factory.mktemp("place")
    make_inputs(place / "first" / "inputs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place / "first")
        with at_batch(3, interrupt), pytest.raises(Interrupted):
            run_in(Path("run"), settings())
    return place / "first", Path(shutil.copytree(place / "first", place / "copy"))


@pytest.fixture
def begun(interrupted, monkeypatch) -> Path:
    """The folder of that run, with relative paths of data and model; a test may change it and what is beside it."""
    first, copied = interrupted
    shutil.rmtree(first)
    shutil.copytree(copied, first)
    monkeypatch.chdir(first)
    return first / "run"


def settings() -> list[str]:
    """Return the settings of a run whose data and model are in the working directory."""
    return [
        *SHORT,
        *("model=pretrained", "model.name=inputs/model", "data=files"),
        *(f"data.{split}=inputs/{split}.tsv" for split in ("train", "validation", "test")),
        *("data.batch_size=8", "trainer.accelerator=cpu", "trainer.log_every_n_steps=1", "objective.num_heads=4"),
    ]


def change(path: Path, before: str, after: str) -> None:
    """Change the first occurrence of a text in a file."""
    text = path.read_text(encoding="utf-8")
    assert before in text
    path.write_text(text.replace(before, after, 1), encoding="utf-8")


CHANGES = {
    "train": ("\tfirst", "\tsecond"),
    "validation": ("word23", "word24"),
    "test": ("text\tlabel\n", "text\tlabel\nword9\tfirst\n"),
}


@pytest.mark.parametrize("split", CHANGES)
def test_changed_data_are_named_and_refused(split, begun, capsys):
    path = begun.parent / "inputs" / f"{split}.tsv"
    change(path, *CHANGES[split])
    before = sorted(begun.rglob("*"))
    for end in (lambda: resume(begun), lambda: end_of(begun, settings(), "resume=auto")):
        assert end() == 1
        error = capsys.readouterr().err
        assert f"the contents of data.{split} differ" in error
        assert "data.allow_changed=true" in error
    assert sorted(begun.rglob("*")) == before


@pytest.mark.parametrize("rows", [80, 8])
def test_changed_data_are_allowed_with_a_warning_once(rows, begun, capsys, caplog):
    write_table(begun.parent / "inputs" / "train.tsv", rows=rows, seed=7)
    with at_batch(1, interrupt), pytest.raises(Interrupted):
        resume(begun, "data.allow_changed=true")
    assert "goes on with data.allow_changed=true: " in caplog.text
    write_table(begun.parent / "inputs" / "train.tsv", rows=rows, seed=8)
    assert resume(begun) == 1
    assert "cannot resume: the contents of" in capsys.readouterr().err
    write_table(begun.parent / "inputs" / "train.tsv", rows=rows, seed=7)
    assert resume(begun) == 0


def test_relative_paths_mean_the_same_in_another_folder(begun, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    taken = recalled(begun)
    assert taken["data"]["test"] == str(begun.parent / "inputs" / "test.tsv")
    assert taken["model"]["name"] == str(begun.parent / "inputs" / "model")
    assert resume(begun) == 0


def test_other_data_under_the_same_relative_path_are_refused(begun, tmp_path, monkeypatch, capsys):
    shutil.copytree(begun.parent / "inputs", tmp_path / "second" / "inputs")
    monkeypatch.chdir(tmp_path / "second")
    change(Path("inputs/train.tsv"), "\tfirst", "\tsecond")
    assert end_of(begun, settings(), "resume=auto") == 1
    assert "the contents of data.train differ" in capsys.readouterr().err


def test_copies_of_the_files_are_the_same_data(begun, tmp_path, monkeypatch):
    (begun.parent / "inputs").rename(tmp_path / "inputs")
    monkeypatch.chdir(tmp_path)
    assert end_of(begun, settings(), "resume=auto") == 0


def test_another_model_or_teacher_under_the_same_name_is_refused(begun, tmp_path, capsys):
    place = begun.parent / "inputs" / "model"
    shutil.rmtree(place)
    make_model_folder(place, seed=1)
    assert resume(begun) == 1
    assert "the contents of model.name differ" in capsys.readouterr().err


def test_columns_of_other_names_are_other_data():
    records = [{"examples": {"test": {"num_rows": 3, name: "ff"}}} for name in ("text", "sentence")]
    assert data_differ(*records, "test")


NO_TABLE = '{"examples": {"test": [1]}, "folders": {}, "classes": null}'


@pytest.mark.parametrize("content", [None, "{", "[]", '{"data": {}}', NO_TABLE])
def test_a_lost_or_damaged_record_is_no_equal_one(content, begun, capsys):
    (begun / "inputs.json").unlink()
    if content is not None:
        (begun / "inputs.json").write_text(content)
    assert resume(begun) == 1
    assert f"{begun}/inputs.json" in capsys.readouterr().err
    with at_batch(1, interrupt), pytest.raises(Interrupted):
        resume(begun, "data.allow_changed=true")
    assert json.loads((begun / "inputs.json").read_text())["examples"].keys() == {"train", "validation", "test"}


def test_a_finished_run_is_evaluated_on_its_own_test_file_from_another_folder(begun, tmp_path, monkeypatch, caplog):
    assert resume(begun) == 0
    (tmp_path / "second" / "inputs").mkdir(parents=True)
    write_table(tmp_path / "second" / "inputs" / "test.tsv", rows=10, seed=5)
    monkeypatch.chdir(tmp_path / "second")
    numbers, _ = evaluate_folder(str(begun), ["trainer.accelerator=cpu"])
    stored = json.loads((begun / "metrics.json").read_text())
    assert numbers["num_examples"] == 16
    assert numbers["metrics"]["accuracy"] == stored["test/accuracy"]
    assert "differ" not in caplog.text
    change(begun.parent / "inputs" / "test.tsv", "\tfirst", "\tsecond")
    evaluate_folder(str(begun), ["trainer.accelerator=cpu"])
    assert "data differ from those of the run" in caplog.text


def test_a_run_with_a_tokenizer_made_up_for_missing_files_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_inputs(tmp_path / "inputs")
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        (tmp_path / "inputs" / "model" / name).unlink(missing_ok=True)
    assert end_of(tmp_path / "run", settings()) == 1
    assert "has no tokens for texts" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
