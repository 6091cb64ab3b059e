"""Question answering: windows, offsets and unanswerable questions."""

import datasets
import pytest
import torch
from datasets import Dataset, DatasetDict
from transformers import AutoTokenizer, BertConfig, BertForQuestionAnswering, PreTrainedTokenizerFast

from gating.data.sources import Examples
from gating.tasks import QuestionAnswering
from tests.support.tiny_run import make_model_folder

CONTEXT = " ".join(f"word{i}" for i in range(1, 31))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_model_folder(tmp_path_factory.mktemp("questions") / "model")


def prepare(folder, *, unanswerable: bool = False):
    answers = [{"text": ["word2"], "answer_start": [CONTEXT.index("word2")]}] * 6
    if unanswerable:
        answers[0] = {"text": [], "answer_start": []}
    table = Dataset.from_dict({"context": [CONTEXT] * 6, "question": ["word0"] * 6, "answers": answers})
    splits = DatasetDict(train=table, validation=table.select(range(2)), test=table.select(range(3)))
    with torch.device("meta"):
        meta_model = BertForQuestionAnswering(BertConfig(num_hidden_layers=1))
    return QuestionAnswering().prepare(
        Examples(splits), AutoTokenizer.from_pretrained(folder), meta_model, max_length=20
    )


def test_only_validation_and_test_have_values_for_metrics(folder):
    splits = prepare(folder).splits
    assert not [name for name in splits["train"].column_names if name.startswith("metric_")]
    numbers = [sorted(set(splits[split]["metric_example"])) for split in ("validation", "test")]
    assert numbers == [[0, 1], [2, 3, 4]]


def test_padding_has_no_offsets(folder):
    prepared = prepare(folder)
    windows = sorted(prepared.splits["validation"], key=lambda window: len(window["input_ids"]))
    batch = prepared.collate([windows[0], windows[-1]])
    short = len(windows[0]["input_ids"])
    assert short < batch["input_ids"].shape[1]
    assert batch["metric_offsets"].shape == (*batch["input_ids"].shape, 2)
    assert (batch["metric_offsets"][0, short:] == -1).all()
    assert batch["metric_offsets"][1].tolist() == [list(place) for place in windows[-1]["metric_offsets"]]


@pytest.mark.parametrize("unanswerable", [True, False])
def test_no_answer_is_valid_if_the_training_data_has_unanswerable_questions(folder, unanswerable):
    (metric,) = prepare(folder, unanswerable=unanswerable).metrics.values()
    assert metric._unanswerable is unanswerable


def test_windows_are_made_once_for_all_runs(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    calls = []
    call = PreTrainedTokenizerFast.__call__
    monkeypatch.setattr(PreTrainedTokenizerFast, "__call__", lambda *a, **k: calls.append(1) or call(*a, **k))
    prepare(folder)
    assert calls
    calls.clear()
    prepare(folder)
    assert not calls
