"""Tasks of GLUE: their columns on the hub and their metrics."""

import json

import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

import train
from gating.data import sources
from gating.tasks import Regression, SequenceClassification
from tests.support.tiny_run import compose_settings, make_model_folder

# Task -> its columns of text, the names of its classes and its metrics, the first to report.
GLUE = {
    "cola": (["sentence"], ["unacceptable", "acceptable"], ["matthews"]),
    "sst2": (["sentence"], ["negative", "positive"], ["accuracy"]),
    "mrpc": (["sentence1", "sentence2"], ["not_equivalent", "equivalent"], ["accuracy", "f1"]),
    "stsb": (["sentence1", "sentence2"], [], ["pearson", "spearman"]),
    "qqp": (["question1", "question2"], ["not_duplicate", "duplicate"], ["accuracy", "f1"]),
    "mnli": (["premise", "hypothesis"], ["entailment", "neutral", "contradiction"], ["accuracy"]),
    "qnli": (["question", "sentence"], ["entailment", "not_entailment"], ["accuracy"]),
    "rte": (["sentence1", "sentence2"], ["entailment", "not_entailment"], ["accuracy"]),
    "wnli": (["sentence1", "sentence2"], ["not_entailment", "entailment"], ["accuracy"]),
}
NUM_ROWS = {"train": 80, "validation": 12, "validation_matched": 12}


@pytest.fixture(autouse=True)
def glue_on_the_hub(monkeypatch):
    """Replace the hub by small tables."""

    def load_dataset(path: str, name: str) -> DatasetDict:
        assert path == "nyu-mll/glue"
        texts, classes, _ = GLUE[name]
        label = ClassLabel(names=classes) if classes else Value("float32")
        features = Features({**{text: Value("string") for text in texts}, "label": label, "idx": Value("int32")})
        tables = {}
        for split_name, rows in NUM_ROWS.items():
            words = {text: [f"word{row % 40} word{number}" for row in range(rows)] for number, text in enumerate(texts)}
            labels = [row % len(classes) if classes else row % 11 / 2 for row in range(rows)]
            columns = {**words, "label": labels, "idx": list(range(rows))}
            tables[split_name] = Dataset.from_dict(columns, features=features)
        return DatasetDict(tables)

    monkeypatch.setattr(sources, "outage", lambda: None)
    monkeypatch.setattr(sources.datasets, "load_dataset", load_dataset)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_model_folder(tmp_path_factory.mktemp("glue") / "model")


@pytest.mark.parametrize("name", GLUE)
def test_metrics_are_those_that_glue_reports(name, folder):
    texts, classes, metrics = GLUE[name]
    with torch.device("meta"):
        meta_model = BertForSequenceClassification(BertConfig(num_hidden_layers=1))
    task = SequenceClassification() if classes else Regression()
    examples, tokenizer = sources.load_glue(name=name), AutoTokenizer.from_pretrained(folder)
    # The test labels are not published: the validation data are the test data.
    assert [len(examples.splits[split]) for split in ("train", "validation", "test")] == [76, 4, 12]
    prepared = task.prepare(examples, tokenizer, meta_model, max_length=16)
    assert list(prepared.metrics) == metrics
    assert prepared.score.name == metrics[0]
    assert prepared.config["num_labels"] == (len(classes) or 1)
    # The tokens contain all columns of texts.
    separators = prepared.splits["test"]["input_ids"][0].count(tokenizer.sep_token_id)
    assert separators == len(texts)


@pytest.mark.runs
def test_a_run_needs_only_the_name_of_the_task(folder, tmp_path):
    overrides = [
        *("model=pretrained", f"model.name={folder}", "data=glue", "data.name=cola", "trainer.max_steps=4"),
        *("trainer.accelerator=cpu", "objective.num_heads=4", "logger=csv", "callbacks=none"),
    ]
    train.run(compose_settings([*overrides, f"output_dir={tmp_path / 'out'}"]))
    numbers = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert "test/matthews" in numbers
    assert "test/accuracy" not in numbers
