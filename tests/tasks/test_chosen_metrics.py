"""Metrics that settings choose: by name, as classes of torchmetrics, and as a user's."""

import json
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torchmetrics import F1Score, Metric
from torchmetrics.classification import MulticlassF1Score
from torchmetrics.regression import MeanSquaredError
from torchmetrics.text import CharErrorRate

import train
from gating.errors import InputError
from gating.report.score import Score
from gating.tasks.metrics.choice import ChosenMetrics
from gating.tasks.metrics.labels import CLASS_METRICS, NUMBER_METRICS, build_class_metrics, build_number_metrics
from gating.tasks.metrics.texts import (
    TEXT_METRICS,
    TOKEN_SCORES,
    build_text_metrics,
    build_token_metrics,
    update_token_metrics,
)
from gating.tasks.token_classification import TAG_METRICS, build_tag_metrics
from tests.support.tiny_run import compose_settings

sklearn = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")


def classes(metrics, num_classes=3, score=None):
    return build_class_metrics(ChosenMetrics(metrics, score, CLASS_METRICS), ("accuracy",), num_classes=num_classes)


def outputs(num_classes: int, rows: int = 60) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(num_classes, (rows,), generator=generator)
    noise = torch.randn(rows, num_classes, generator=generator)
    return noise + 2 * torch.nn.functional.one_hot(labels, num_classes), labels


@pytest.mark.parametrize("num_classes", [2, 4])
def test_named_metrics_are_those_of_scikit_learn(num_classes):
    logits, labels = outputs(num_classes)
    average = "binary" if num_classes == 2 else "macro"
    predicted, probabilities = logits.argmax(1), logits.softmax(1)
    expected = {
        "accuracy": sklearn.accuracy_score(labels, predicted),
        "f1": sklearn.f1_score(labels, predicted, average=average),
        "macro_f1": sklearn.f1_score(labels, predicted, average="macro"),
        "weighted_f1": sklearn.f1_score(labels, predicted, average="weighted"),
        "precision": sklearn.precision_score(labels, predicted, average=average),
        "recall": sklearn.recall_score(labels, predicted, average=average),
        "macro_precision": sklearn.precision_score(labels, predicted, average="macro"),
        "macro_recall": sklearn.recall_score(labels, predicted, average="macro"),
        "balanced_accuracy": sklearn.balanced_accuracy_score(labels, predicted),
        "mcc": sklearn.matthews_corrcoef(labels, predicted),
        "auroc": sklearn.roc_auc_score(labels, probabilities[:, 1])
        if num_classes == 2
        else sklearn.roc_auc_score(labels, probabilities, multi_class="ovr"),
    }
    metrics, score = classes(list(expected), num_classes)
    assert score == Score("accuracy")
    for start in range(0, 60, 25):
        metrics.update(logits[start : start + 25], labels[start : start + 25])
    for name, value in metrics.compute().items():
        assert float(value) == pytest.approx(expected[name], abs=1e-6), name


def test_a_class_gets_its_number_of_classes_from_the_data():
    macro, called = partial(MulticlassF1Score, average="macro"), partial(F1Score, average="weighted")
    metrics, score = classes({"mine": macro, "macro_f1": None, "called": called, "weighted_f1": None})
    logits, labels = outputs(3)
    metrics.update(logits, labels)
    found = metrics.compute()
    assert found["mine"] == found["macro_f1"]
    assert found["called"] == found["weighted_f1"]
    assert score == Score("mine")


@pytest.mark.parametrize(
    ("metrics", "score", "told"),
    [
        (["f2"], None, "'f2'"),
        (["accuracy"], "f1", r"task\.score=f1"),
        ([], None, "empty"),
        ({"mine": partial(MulticlassF1Score, nothing=1)}, None, r"task\.metrics\.mine.*nothing"),
    ],
)
def test_metrics_that_cannot_be_used_are_told_before_training(metrics, score, told):
    with pytest.raises(InputError, match=told):
        classes(metrics, 3, score)


class Distance(Metric):
    """A metric of a user whose states have the same first values as another's."""

    higher_is_better = False

    def __init__(self, num_classes, scale=1.0):
        super().__init__()
        self.scale = scale / num_classes
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, preds, target):
        self.total += self.scale * (preds.argmax(-1) - target).abs().sum()

    def compute(self):
        return self.total


class Squared(Distance):
    def update(self, preds, target):
        self.total += self.scale * (preds.argmax(-1) - target).pow(2).sum()


def test_metrics_of_a_user_keep_states_of_their_own():
    metrics, score = classes({"distance": Distance, "squared": Squared})
    assert score == Score("distance", scale=1, unit="", higher_is_better=False)
    one_off = torch.tensor([[0.0, 1.0, 0.0]])
    metrics.update(one_off, torch.tensor([0]))
    metrics.update(one_off.flip(1).roll(1, 1), torch.tensor([2]))
    metrics.update(torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([2]))
    found = {name: 3 * float(value) for name, value in metrics.compute().items()}
    assert found["squared"] > found["distance"] > 0


def test_metrics_of_numbers_tags_and_tokens():
    numbers, score = build_number_metrics(
        ChosenMetrics({"mine": MeanSquaredError, "rmse": None}, "rmse", NUMBER_METRICS), ()
    )
    numbers.update(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0]))
    assert numbers.compute() == {"mine": 2.0, "rmse": pytest.approx(2.0**0.5)}
    assert not score.higher_is_better

    choice = ChosenMetrics({"mine": MulticlassF1Score, "macro_f1": None}, None, TAG_METRICS)
    tags, _ = build_tag_metrics(choice, (), tag_names=["A", "B"])
    tags.update(torch.tensor([[0, 1, 1]]), torch.tensor([[0, 1, -100]]))
    assert tags.compute() == {"mine": 1.0, "macro_f1": 1.0}

    tokens, score = build_token_metrics(ChosenMetrics(["accuracy", "perplexity"], None, TOKEN_SCORES), vocab_size=3)
    logits = torch.tensor([[[0.0, 1.0, 2.0], [0.0, 1.0, 2.0]]])
    update_token_metrics(tokens.values(), logits, torch.tensor([[2, -100]]))
    update_token_metrics(tokens.values(), logits, torch.tensor([[-100, 0]]))
    update_token_metrics(tokens.values(), logits, torch.tensor([[-100, -100]]))
    assert tokens.compute()["accuracy"] == 0.5
    log_likelihoods = logits[0, 0].log_softmax(0)[[2, 0]]
    assert float(tokens.compute()["perplexity"]) == pytest.approx(float((-log_likelihoods.mean()).exp()))
    assert score == Score("accuracy")


class Several(CharErrorRate):
    """A metric of texts with several numbers, as ROUGEScore."""

    def compute(self):
        return {"first": super().compute(), "second": super().compute()}


def test_metrics_of_texts_are_apart_from_those_of_their_tokens():
    def built(*chosen):
        tokens, score, texts, final = build_text_metrics(ChosenMetrics(*chosen, TEXT_METRICS), vocab_size=9)
        return set(tokens), score.name, None if texts is None else set(texts), final.name

    tokens = {"perplexity", "accuracy"}
    assert built(None, None) == (tokens, "perplexity", {"bleu", "chrf"}, "bleu")
    assert built(None, "chrf") == (tokens, "perplexity", {"bleu", "chrf"}, "chrf")
    assert built(["accuracy"], None) == ({"accuracy"}, "accuracy", None, "accuracy")
    assert built({"errors": CharErrorRate, "accuracy": None}, None) == ({"accuracy"}, "accuracy", {"errors"}, "errors")
    # These are used only at the end of a search: a metric of classes, and one of several numbers.
    for metric in (MulticlassF1Score(3), Several()):
        with pytest.raises(InputError, match=r"task\.metrics\.mine does not give one number"):
            built({"mine": metric}, None)


# Runs.

OWN = '''
import torch
from torchmetrics import Metric

class ShareOfFirst(Metric):
    """The share of examples that are predicted to be of the first class."""

    higher_is_better = False
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    def __init__(self, weight=1.0):
        super().__init__()
        self.weight = weight
        self.add_state("first", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("total", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, preds, target):
        self.first += (preds.argmax(-1) == 0).sum()
        self.total += len(target)

    def compute(self):
        return self.weight * self.first / self.total
'''


@pytest.fixture
def own(tmp_path, monkeypatch) -> Path:
    (tmp_path / "my_metric.py").write_text(OWN)
    (tmp_path / "conf" / "task").mkdir(parents=True)
    (tmp_path / "conf" / "task" / "mine.yaml").write_text(
        "defaults:\n  - sequence_classification\nmetrics:\n  share:\n    _target_: my_metric.ShareOfFirst\n"
        "    weight: 0.5\n  accuracy:\n  macro_f1:\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("my_metric", None)


@pytest.mark.runs
def test_a_run_reports_the_metrics_of_a_users_module(own, inputs):
    settings = [
        f"hydra.searchpath=[file://{own / 'conf'}]",
        "task=mine",
        "logger=csv",
        "trainer.max_steps=4",
        "trainer.val_check_interval=2",
        "trainer.num_sanity_val_steps=1",
    ]
    returned = train.run(compose_settings([*inputs, *settings, "callbacks=none", f"output_dir={own / 'run'}"]))
    numbers = json.loads((own / "run" / "metrics.json").read_text())
    for stage in ("val", "test", "search/val", "compact/val", "compact/test"):
        assert {f"{stage}/share", f"{stage}/accuracy", f"{stage}/macro_f1"} <= numbers.keys()
    assert numbers["metric"] == "share"
    assert returned == numbers["val/share"] <= 0.5
    assert "val/share" in (own / "run" / "csv" / "metrics.csv").read_text().splitlines()[0]
    assert "share" in (own / "run" / "compact" / "README.md").read_text()
