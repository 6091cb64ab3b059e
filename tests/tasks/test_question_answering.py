"""Question answering: windows, offsets, unanswerable questions, exact match and F1."""

import datasets
import pytest
import torch
from datasets import Dataset, DatasetDict
from torchmetrics import MetricCollection
from torchmetrics.text import SQuAD
from transformers import AutoTokenizer, BertConfig, BertForQuestionAnswering, PreTrainedTokenizerFast

from gating.data.sources import Examples
from gating.tasks import QuestionAnswering
from gating.tasks.question_answering import AnswerScores, best_spans
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


CONTEXTS = ["the red cat sat", "a dog ran far away", "no answer here"]
ANSWERS = [
    {"text": ["red cat", "cat"], "answer_start": [4, 8]},
    {"text": ["far away"], "answer_start": [10]},
    {"text": [], "answer_start": []},
]
REFERENCES = Dataset.from_dict({"context": CONTEXTS, "answers": ANSWERS})


def test_best_span_is_that_of_brute_force():
    generator = torch.Generator().manual_seed(0)
    start, end = torch.randn(5, 9, generator=generator), torch.randn(5, 9, generator=generator)
    offsets = torch.tensor([[-1, -1]] * 2 + [[3 * i, 3 * i + 2] for i in range(6)] + [[-1, -1]]).repeat(5, 1, 1)
    cls_index = torch.zeros(5, dtype=torch.long)
    scores, characters, no_answer = best_spans(start, end, offsets=offsets, cls_index=cls_index, max_length=3)
    for row in range(5):
        tried = {(i, j): float(start[row, i] + end[row, j]) for i in range(2, 8) for j in range(i, min(8, i + 3))}
        (first, last), best = max(tried.items(), key=lambda item: item[1])
        assert float(scores[row]) == pytest.approx(best)
        assert characters[row].tolist() == [int(offsets[row, first, 0]), int(offsets[row, last, 1])]
        assert float(no_answer[row]) == pytest.approx(float(start[row, 0] + end[row, 0]))


def measure(windows: list[tuple[int, float, list[int], float]], *, unanswerable: bool) -> dict[str, float]:
    """Update the metrics with one window after the other: example, score, characters, score of no answer."""
    metrics = MetricCollection([AnswerScores(REFERENCES, unanswerable=unanswerable)])
    for number, score, characters, no_answer in windows:
        metrics.update(
            torch.tensor([number]), torch.tensor([score]), torch.tensor([characters]), torch.tensor([no_answer])
        )
    return {name: float(value) for name, value in metrics.compute().items()}


def test_scores_are_those_of_torchmetrics_on_the_best_window_of_each_text():
    windows = [(1, 0.1, [2, 5], 9.0), (0, 2.0, [4, 15], 0.0), (1, 3.0, [6, 18], 9.0), (0, 1.0, [0, 3], 0.0)]
    reference = SQuAD()
    for number, text in ((0, "red cat sat"), (1, "ran far away")):
        reference.update(
            [{"prediction_text": text, "id": str(number)}], [{"answers": ANSWERS[number], "id": str(number)}]
        )
    expected = {name: float(value) / 100 for name, value in reference.compute().items()}
    assert 0 < expected["f1"] < 1
    assert measure(windows, unanswerable=False) == pytest.approx(expected, abs=1e-7)


def test_no_answer_is_given_where_every_window_prefers_it_and_the_data_has_such_questions():
    windows = [(2, 1.0, [3, 9], 5.0), (2, 2.0, [3, 9], 3.0)]
    assert measure(windows, unanswerable=True)["exact_match"] == 1
    assert measure(windows, unanswerable=False)["exact_match"] == 0
    assert measure([*windows, (2, 1.5, [0, 2], 1.0)], unanswerable=True)["exact_match"] == 0
