"""Logits of a teacher that are computed once: where, for which examples, and the same as in each step."""

import copy
from types import SimpleNamespace

import datasets
import pytest
import torch
from datasets import Dataset, DatasetDict
from transformers import BertForSequenceClassification, BertTokenizer, DataCollatorWithPadding

import gating
from gating.data.computed import model_digest
from gating.data.datamodule import ExampleDataModule
from gating.data.examples import TEACHER_LOGITS, model_inputs
from gating.training.stored_logits import add_logits, can_store_logits
from tests.support.tiny_run import make_model_folder

SHAPES = {"logits": (8, 2)}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return make_model_folder(tmp_path / "model")


def make_data(folder, *, rows=20):
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(2, 9, (rows,), generator=generator)
    tokens = [torch.randint(5, 45, (int(length),), generator=generator).tolist() for length in lengths]
    table = Dataset.from_dict({"input_ids": tokens, "label": [number % 2 for number in range(rows)]})
    collate = DataCollatorWithPadding(BertTokenizer.from_pretrained(folder))
    return ExampleDataModule(DatasetDict(train=table, validation=table), collate, batch_size=4, eval_batch_size=3)


def test_each_example_has_the_logits_that_the_teacher_gives_it_alone(folder):
    teacher = gating.Teacher(BertForSequenceClassification.from_pretrained(folder))
    data = make_data(folder)
    add_logits(data, teacher, device=torch.device("cpu"))
    assert TEACHER_LOGITS not in data.table("validation").column_names
    seen = 0
    for batch in data.train_dataloader():
        expected = teacher(model_inputs(batch))["logits"]
        torch.testing.assert_close(batch[TEACHER_LOGITS], expected, rtol=1e-5, atol=1e-6)
        seen += len(expected)
    assert seen == 20


def test_a_digest_is_of_numbers_of_any_shape():
    norm = torch.nn.BatchNorm1d(2)
    before = model_digest(norm)
    assert model_digest(copy.deepcopy(norm)) == before
    norm.num_batches_tracked += 1
    assert model_digest(norm) != before


def test_they_are_computed_again_for_other_weights_alone(folder, monkeypatch):
    model = BertForSequenceClassification.from_pretrained(folder)
    first = make_data(folder)
    add_logits(first, gating.Teacher(model), device=torch.device("cpu"))
    silent = copy.deepcopy(model)
    monkeypatch.setattr(silent, "forward", None)
    again = make_data(folder)
    add_logits(again, gating.Teacher(silent), device=torch.device("cpu"))
    stored = [data.table("train")[TEACHER_LOGITS][:] for data in (first, again)]
    assert stored[0] == stored[1]
    model.classifier.bias.data += 1
    other = make_data(folder)
    add_logits(other, gating.Teacher(model), device=torch.device("cpu"))
    assert other.table("train")[TEACHER_LOGITS][0] != stored[0][0]


def test_they_are_stored_where_that_is_less_work(folder):
    data, model = make_data(folder), torch.nn.Linear(1, 1)
    # Five batches of four are all examples.
    assert not can_store_logits(data, model, SHAPES, 5)
    assert can_store_logits(data, model, SHAPES, 6)
    assert can_store_logits(data, model, SHAPES, 1, store=True)
    assert not can_store_logits(data, model, SHAPES, 6, store=False)


@pytest.mark.parametrize(
    "shapes",
    [
        {"logits": (8, 12, 2)},
        {"start_logits": (8, 12), "end_logits": (8, 12)},
        {**SHAPES, "hidden_states": [(8, 12, 32)]},
        {"logits": (8, 20_000_000)},
    ],
)
def test_they_are_not_stored_where_they_do_not_fit(folder, shapes):
    data, model = make_data(folder), torch.nn.Linear(1, 1)
    assert not can_store_logits(data, model, shapes, 100, store=True)


def test_images_are_not_stored(folder):
    data = SimpleNamespace(table=lambda split: Dataset.from_dict({"image": [0]}), batch_size=1)
    assert not can_store_logits(data, torch.nn.Linear(1, 1), SHAPES, 100)
