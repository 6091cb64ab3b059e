"""The command that evaluates a model in a folder."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoTokenizer

import gating
from gating.commands.evaluate import evaluation_settings
from tests.support.interruptions import run_in
from tests.support.sweeps import write_run
from tests.support.tiny_run import WORDS, checked_settings, make_inputs, write_table
from tests.test_main import run

pytestmark = pytest.mark.runs


@pytest.fixture(scope="module")
def finished(inputs, tmp_path_factory) -> Path:
    """A run that draws its validation and test data with a seed, and has two metrics."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    drawn = [line for line in inputs if not line.startswith(("data.validation", "data.test"))]
    # Trained long enough that examples are told apart, and that few of them are not.
    longer = ["trainer.max_steps=40", "trainer.val_check_interval=8", "optimizer.lr=3e-3", "scheduler.restart=false"]
    # Time for the whole batch, also on a busy machine: otherwise fewer of its rows are timed.
    time = ["latency.max_seconds=100"]
    run_in(folder, drawn, *longer, *time, "seed=3", "task.metrics=[accuracy,matthews]", "data.max_length=8")
    return folder


def call(monkeypatch, capsys, *arguments: object) -> tuple[str, str]:
    """Call the command; return its output, or its error."""
    capsys.readouterr()
    try:
        run(monkeypatch, "evaluate", *arguments)
    except SystemExit as end:
        return "", str(end.code)
    return capsys.readouterr().out, ""


@pytest.fixture
def evaluate(monkeypatch, capsys):
    def as_json(*arguments: object) -> dict[str, Any]:
        folder, *settings = arguments
        out, error = call(monkeypatch, capsys, folder, "--json", *settings)
        assert not error
        return json.loads(out)

    return as_json


def of_run(folder: Path, split: str) -> dict[str, float]:
    numbers = json.loads((folder / "metrics.json").read_text())
    return {name.partition("/")[2]: value for name, value in numbers.items() if name.startswith(f"{split}/")}


@pytest.mark.first
@pytest.mark.parametrize("place", ["", "compact"])
def test_a_folder_alone_repeats_the_evaluation_of_its_run_to_the_bit(place, finished, evaluate):
    numbers = evaluate(finished / place)
    assert numbers["split"] == "test"
    assert numbers["metrics"] == of_run(finished, "test")
    assert evaluate(finished / place, "--split", "validation")["metrics"] == of_run(finished, "val")
    stored = json.loads((finished / "metrics.json").read_text())
    for name in ("num_heads", "num_heads_before", "num_parameters", "macs", "macs_before", "megabytes_before"):
        assert numbers[name] == stored[name]
    assert numbers["latency_batch"] == stored["latency_batch"]
    assert numbers["latency_ms"] > 0 < numbers["speedup"]


def test_a_dense_run_and_a_dense_model_are_evaluated_too(inputs, tmp_path, evaluate, caplog):
    dense = [line for line in inputs if not line.startswith("objective.")]
    run_in(tmp_path / "run", dense, "objective=none", "trainer.max_steps=4")
    numbers = evaluate(tmp_path / "run" / "compact")
    assert numbers["metrics"] == of_run(tmp_path / "run", "test")
    assert "speedup" not in numbers
    assert numbers["num_heads"] == 12
    files = [line for line in inputs if line.startswith("data")]
    shutil.copytree(tmp_path / "run" / "compact", tmp_path / "alone")
    assert evaluate(tmp_path / "alone", *files)["metrics"] == numbers["metrics"]
    model = next(line.partition("=")[2] for line in inputs if line.startswith("model.name"))
    assert not caplog.text
    assert evaluate(model, *files)["num_examples"] == 16
    # Its two classes have no names.
    assert "labels are taken in their order: 'first' is 0, 'second' is 1." in caplog.text


def test_other_data_is_compared_with_the_labels_of_the_model(finished, tmp_path, evaluate):
    """A file with one of the labels alone, which would be class 0 of its own."""
    rows = write_table(tmp_path / "table.tsv", rows=24, seed=7).read_text().splitlines()
    rows = [row for row in rows if row.endswith("second")]
    (tmp_path / "other.tsv").write_text("text\tlabel\n" + "\n".join(rows) + "\n")
    model = gating.load_compact(finished / "compact")
    tokenizer = AutoTokenizer.from_pretrained(finished / "compact")
    texts = [row.partition("\t")[0] for row in rows]
    with torch.no_grad():
        logits = model(**tokenizer(texts, truncation=True, max_length=8, padding=True, return_tensors="pt")).logits
    right = (logits.argmax(-1) == model.config.label2id["second"]).float().mean()
    numbers = evaluate(finished, "data=files", f"data.test={tmp_path / 'other.tsv'}", "data.max_length=8")
    assert numbers["num_examples"] == 12
    assert numbers["metrics"]["accuracy"] == pytest.approx(float(right))
    assert set(numbers["metrics"]) == {"accuracy", "matthews"}
    both = [f"data.{split}={tmp_path / 'other.tsv'}" for split in ("train", "validation")]
    assert evaluate(finished, *both, "--split", "validation")["metrics"] == numbers["metrics"]


def run_on_other_labels(finished: Path, folder: Path) -> Path:
    """Return a copy of a run that reads a file with both labels exchanged, from which all its data is drawn."""
    shutil.copytree(finished, folder / "run")
    settings = (folder / "run" / "config.yaml").read_text()
    (place,) = re.findall(r"\S+/train\.tsv", settings)
    rows = Path(place).read_text().replace("\tfirst", "\tother").replace("\tsecond", "\tfirst")
    (folder / "train.tsv").write_text(rows.replace("\tother", "\tsecond"))
    (folder / "run" / "config.yaml").write_text(settings.replace(place, str(folder / "train.tsv")))
    return folder / "run"


@pytest.mark.parametrize("setting", ["data.eval_batch_size=4", "data.max_length=6", "task.metrics=[accuracy]"])
def test_changed_data_are_said_whatever_else_is_given(setting, finished, tmp_path, evaluate, caplog):
    evaluate(run_on_other_labels(finished, tmp_path), setting)
    assert "data differ from those of the run" in caplog.text


def data_of(run: Path, *overrides: str, split: str | None = None) -> dict[str, Any]:
    """Return the settings of the data of an evaluation."""
    return evaluation_settings("model", overrides, run_folder=run, split=split).data


def files_of(data: dict[str, Any]) -> tuple[str | None, ...]:
    return data["train"], data["validation"], data["test"]


def test_files_in_place_of_those_of_a_run_leave_its_other_settings(tmp_path):
    files = ["data.validation=old.tsv", "data.test=old.tsv"]
    run = write_run(tmp_path / "run", *files, "data.max_length=24", "data.text_column=question")
    for chosen in ([], ["data=files"], ["data=pairs"]):
        data = data_of(run, *chosen, "data.test=new.tsv")
        assert files_of(data) == (None, None, "new.tsv")
        assert (data["max_length"], data["text_column"]) == (24, "question")
        assert data_of(run, *chosen, "data.test=new.tsv", "data.max_length=32")["max_length"] == 32
        assert files_of(data_of(run, *chosen, "data.validation=new.tsv")) == (None, "new.tsv", None)
    assert files_of(data_of(run, "data.test=new.tsv", split="validation")) == ("a.tsv", "old.tsv", "new.tsv")
    assert files_of(data_of(run, "data=files", "data.train=new.tsv")) == ("new.tsv", None, None)
    data = data_of(run, "data=hub", "data.path=user/name")
    assert (data.get("max_length"), data.get("text_column")) == (None, None)


def finish(run: Path, *overrides: str) -> None:
    """Write the settings of a finished run into a folder."""
    (run / "config.yaml").write_text(yaml.safe_dump(checked_settings([*overrides, f"output_dir={run}"])))
    (run / "metrics.json").write_text("{}")


def test_embeddings_are_compared_with_the_model_and_revision_of_the_run(tmp_path):
    model = ["model=pretrained", "model.name=user/dense", "model.revision=v2"]
    overrides = ["task=embedding", "data=sentences", "data.train=a.txt", *model]
    finish(tmp_path, *overrides)

    def teacher_of(*more: str) -> tuple[str, str]:
        task = evaluation_settings("model", more, run_folder=tmp_path, split=None).task
        return task["teacher"], task["teacher_revision"]

    assert teacher_of() == ("user/dense", "v2")
    assert teacher_of("task.teacher=user/other") == ("user/other", "main")
    finish(tmp_path, *overrides, "task.teacher=user/first", "task.teacher_revision=v1")
    assert teacher_of() == ("user/first", "v1")


def test_one_file_is_evaluated_without_the_training_file_of_the_run(finished, tmp_path, evaluate, capsys):
    shutil.copytree(finished, tmp_path / "run")
    config = (tmp_path / "run" / "config.yaml").read_text()
    (tmp_path / "run" / "config.yaml").write_text(config.replace("train.tsv", "nothing.tsv"))
    table = write_table(tmp_path / "table.tsv", rows=14, seed=7)
    whole = evaluate(tmp_path / "run", f"data.test={table}")
    assert (whole["split"], whole["num_examples"]) == ("test", 14)
    assert "divided" not in capsys.readouterr().err
    assert evaluate(tmp_path / "run", "data=files", f"data.test={table}")["metrics"] == whole["metrics"]
    validation = evaluate(tmp_path / "run", f"data.validation={table}", "--split", "validation")
    assert (validation["split"], validation["metrics"]) == ("validation", whole["metrics"])


def test_data_are_evaluated_whole_also_where_the_run_took_a_part(finished, tmp_path, evaluate, monkeypatch, capsys):
    """As a run of debug=fast, and others with limits of its own."""
    shutil.copytree(finished, tmp_path / "run")
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    config["trainer"] |= {"limit_val_batches": 1, "limit_test_batches": 0.5}
    config["data"]["eval_batch_size"] = 3
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(config))
    table = write_table(tmp_path / "table.tsv", rows=14, seed=7)
    arguments = [tmp_path / "run", f"data.test={table}"]
    whole = evaluate(*arguments)
    assert (whole["num_examples"], whole["limit"]) == (14, None)
    assert evaluate(tmp_path / "run")["metrics"] == of_run(finished, "test")
    assert evaluate(tmp_path / "run", "--split", "validation")["metrics"] == of_run(finished, "val")
    limit = "trainer.limit_test_batches=2"
    part = evaluate(*arguments, limit)
    # Of 5 batches, which are as equal as can be.
    assert (part["num_examples"], part["limit"]) == (5, limit)
    assert part["metrics"] != whole["metrics"]
    out, _ = call(monkeypatch, capsys, *arguments, limit)
    assert f"{tmp_path / 'run'} on 5 test examples, a part of them by {limit} (cpu):" in out
    assert " on 14 test examples (cpu):" in call(monkeypatch, capsys, *arguments)[0]


def test_tags_are_those_of_the_model_too(tmp_path, evaluate, monkeypatch, capsys):
    inputs = make_inputs(tmp_path / "inputs")
    settings = [line for line in inputs if not line.startswith("data")]
    for split in ("train", "validation", "test"):
        rows = [{"tokens": [WORDS[n % 9], WORDS[n % 7 + 9]], "tags": ["B-a" if n % 2 else "O", "O"]} for n in range(24)]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    files = ["data=files", *(f"data.{split}={tmp_path / split}.jsonl" for split in ("train", "validation", "test"))]
    run_in(tmp_path / "run", settings, *files, "task=token_classification", "data.batch_size=8")
    assert evaluate(tmp_path / "run")["metrics"] == of_run(tmp_path / "run", "test")
    (tmp_path / "other.jsonl").write_text(json.dumps({"tokens": ["word1", "word2"], "tags": ["O", "B-b"]}))
    _, error = call(monkeypatch, capsys, tmp_path / "run", "data=files", f"data.test={tmp_path / 'other.jsonl'}")
    assert "'B-b'" in error


def test_slices_of_the_run_are_none_of_other_data(tmp_path):
    hub = ["data=hub", "data.path=user/name", "'data.test_split=\"test[:9]\"'", "'data.validation_split=\"train[9:]\"'"]
    hub = [line.strip("'") for line in hub]
    finish(tmp_path, *hub)
    assert data_of(tmp_path)["test_split"] == "test[:9]"
    data = data_of(tmp_path, "data=hub", "data.path=user/other")
    assert (data["test_split"], data["validation_split"]) == ("test", "train[9:]")
    data = data_of(tmp_path, "data=hub", "data.path=user/other", "data.test_split='test[:5]'")
    assert data["test_split"] == "test[:5]"


def test_data_drawn_with_another_seed_may_be_those_of_the_training(finished, evaluate, caplog):
    evaluate(finished, "data.max_length=6", "--split", "validation")
    assert "differ" not in caplog.text
    evaluate(finished, "seed=5", "--split", "validation")
    assert "another seed draws them anew, also from examples that the model was trained on" in caplog.text
