"""Baselines of the tasks: predictions without a model, on the data that the model is evaluated on."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

import train
from gating.report.score import Score
from gating.tasks import Regression, SequenceClassification, TokenClassification
from gating.tasks.base import Baseline, Task
from gating.tasks.metrics.labels import log_frequencies
from gating.training.evaluation import evaluate, to_number
from tests.support.metrics import class_metrics, number_metrics
from tests.support.tiny_run import WORDS, compose_settings, make_inputs, write_table


class Surer(nn.Module):
    """A model that predicts what a baseline does, with larger logits for each further example."""

    device = torch.device("cpu")

    def __init__(self, baseline: Baseline) -> None:
        super().__init__()
        self.baseline = baseline

    def forward(self, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        further = torch.arange(labels.numel()).view(*labels.shape, 1)
        return {"logits": self.baseline.outputs(labels)["logits"] + further}


def values_of(task: Task, baseline: Baseline, metrics: MetricCollection, *batches: dict) -> dict[str, float]:
    return evaluate(Surer(baseline), batches, task=task, metrics=metrics, baseline=baseline).of_baseline


def test_the_majority_class_is_that_of_the_training_data():
    baseline = Baseline("majority class", log_frequencies([2, 2, 2, 0, 1], 3))
    batches = [{"labels": torch.tensor([2, 0, 1])}, {"labels": torch.tensor([2])}]
    metrics = class_metrics(["accuracy", "macro_f1", "matthews", "auroc"], num_classes=3)
    values = values_of(SequenceClassification(), baseline, metrics, *batches)
    assert values["accuracy"] == 0.5
    assert values["matthews"] == 0
    assert values["auroc"] == pytest.approx(0.5)
    assert not metrics["accuracy"].update_called


def test_the_majority_tag_is_at_each_word():
    baseline = Baseline("majority tag", log_frequencies([1, 1, 0], 2))
    metrics = MetricCollection({"accuracy": MulticlassAccuracy(2, average="micro", ignore_index=-100)})
    labels = torch.tensor([[1, -100, 1], [0, 1, -100]])
    assert values_of(TokenClassification(), baseline, metrics, {"labels": labels}) == {"accuracy": 0.75}


def test_the_mean_has_its_error_and_no_correlation():
    baseline = Baseline("mean label", torch.tensor([2.0]), undefined={"pearson": 0.0, "spearman": 0.0, "r2": 0.0})
    metrics = number_metrics(["pearson", "spearman", "mse", "mae"])
    values = values_of(Regression(), baseline, metrics, {"labels": torch.tensor([2.0, 4.0])})
    assert values == {"pearson": 0, "spearman": 0, "mse": 2, "mae": 1}


def test_windows_of_one_example_count_once():
    batch = {"labels": torch.zeros(3, dtype=torch.long), "metric_example": torch.tensor([0, 1, 1])}
    model, metrics = Surer(Baseline("majority class", torch.zeros(2))), MetricCollection({})
    found = evaluate(model, [batch], task=SequenceClassification(), metrics=metrics)
    assert found.count() == (2, 2)
    assert found.of_baseline == {}


def test_a_metric_that_does_not_score_constants_has_no_baseline():
    class Broken(MulticlassAccuracy):
        def update(self, preds, target):
            if len(preds.unique(dim=0)) == 1:
                raise ValueError("no")
            super().update(preds, target)

    metrics = MetricCollection({"broken": Broken(2), "accuracy": MulticlassAccuracy(2)})
    baseline = Baseline("majority class", torch.tensor([0.0, 1.0]))
    batch = {"labels": torch.tensor([1, 1])}
    found = evaluate(Surer(baseline), [batch], task=SequenceClassification(), metrics=metrics, baseline=baseline)
    assert found.of_baseline == {"accuracy": 1}
    assert set(found.metrics) == {"broken", "accuracy"}


@pytest.mark.parametrize("value", [2 / 3, 0.1, 1.0, 0.0, -0.25, 12345.678, 1e-12])
def test_numbers_have_the_digits_of_their_precision(value):
    number = to_number(torch.tensor(value))
    assert torch.tensor(number) == torch.tensor(value)
    assert len(repr(number)) <= 14
    assert to_number(torch.tensor(value, dtype=torch.float64)) == value


def test_numbers_that_are_not_finite_stay():
    assert math.isnan(to_number(torch.tensor(math.nan)))
    assert to_number(torch.tensor(math.inf)) == math.inf


ACCURACY, PERPLEXITY = Score("accuracy"), Score("perplexity", scale=1, unit="", higher_is_better=False)


@pytest.mark.parametrize(
    ("score", "value", "baseline", "number", "is_better"),
    [
        (ACCURACY, 0.6333, 0.6333, 10_000, False),
        (ACCURACY, 0.66, 0.6333, 30, False),
        (ACCURACY, 0.66, 0.6333, 10_000, True),
        (ACCURACY, 1.0, 0.5, 16, True),
        (ACCURACY, 0.2, 0.5, 10_000, False),
        (ACCURACY, 1.0, 1.0, 100, False),
        (Score("matthews"), 0.1, 0.0, 30, False),
        (Score("matthews"), 0.5, 0.0, 100, True),
        (Score("pearson", unit=""), 0.1, 0.0, 100, False),
        (Score("pearson", unit=""), 0.9, 0.0, 100, True),
        (PERPLEXITY, 30.0, 30.5, 1000, False),
        (PERPLEXITY, 20.0, 30.0, 1000, True),
        (PERPLEXITY, 1e200, 30.0, 1000, False),
        (PERPLEXITY, 40.0, 30.0, 1000, False),
        (ACCURACY, math.nan, 0.5, 100, False),
        (PERPLEXITY, math.inf, 30.0, 100, False),
        (ACCURACY, 0.4, math.nan, 100, True),
    ],
)
def test_a_score_is_better_than_a_baseline_by_more_than_chance(score, value, baseline, number, is_better):
    assert (score.doubt(value, baseline, num_targets=number) is None) == is_better


def run_of(folder: Path, *settings: str) -> dict:
    train.run(compose_settings([*settings, "logger=csv", f"output_dir={folder}"]))
    return json.loads((folder / "metrics.json").read_text())


@pytest.mark.runs
@pytest.mark.filterwarnings("default:The choice of heads is nearly arbitrary")
def test_a_run_has_its_baseline_and_keeps_its_warnings(tmp_path, capsys):
    """One class is most of the data, and small steps teach nothing."""
    inputs = make_inputs(tmp_path / "inputs")
    for number, split in enumerate(("train", "validation", "test")):
        path = tmp_path / "inputs" / f"{split}.tsv"
        write_table(path, rows=30, seed=number, labels=("first", "second", "first"))
    limits = ["data.eval_batch_size=5", "trainer.limit_test_batches=2"]
    numbers = run_of(tmp_path / "run", *inputs, *limits, "optimizer.lr=1e-5", "objective.num_heads=6")
    assert numbers["baseline"] == "majority class"
    assert numbers["baseline/val/accuracy"] == pytest.approx(2 / 3)
    assert (numbers["num_examples/val"], numbers["num_examples/test"], numbers["num_targets/val"]) == (30, 10, 30)
    out = " ".join(capsys.readouterr().out.split())
    assert len(numbers["warnings"]) == 2
    assert "nearly arbitrary" in numbers["warnings"][0]
    assert "no better than the baseline's 66.67 % by more than chance" in numbers["warnings"][1]
    for warning in numbers["warnings"]:
        assert f"warning: {warning}" in out
    for text in (out, (tmp_path / "run" / "compact" / "README.md").read_text()):
        assert "baseline: majority class" in text
        assert "Of the test data, 10 examples were evaluated (trainer.limit_test_batches)." in text
    page = (tmp_path / "run" / "report" / "index.html").read_text()
    assert "baseline: majority class" in page
    assert "nearly arbitrary" in page


def test_a_resumed_recovery_keeps_the_warnings_of_the_search():
    from gating.report.summary import Summary

    summary, again = Summary(warnings=["The choice is arbitrary."]), Summary()
    again.load_state_dict(summary.state_dict())
    assert again.warnings == ["The choice is arbitrary."]


def write_numbers(path: Path, rows: int, *, label: str | None = None) -> Path:
    lines = [f"{WORDS[n % 9]} {WORDS[n % 7]}\t{label or n % 5}" for n in range(rows)]
    path.write_text("text\tlabel\n" + "\n".join(lines) + "\n")
    return path


@pytest.mark.runs
@pytest.mark.parametrize("metrics", ["[pearson,spearman,r2]", "[r2]", "[mse]"])
def test_regression_to_a_constant_finishes_and_says_that_its_score_is_not_finite(metrics, tmp_path, capsys):
    inputs = [*make_inputs(tmp_path / "inputs"), "task=regression", f"task.metrics={metrics}"]
    for split in ("train", "validation", "test"):
        write_numbers(tmp_path / "inputs" / f"{split}.tsv", 16, label="2.5")
    numbers = run_of(tmp_path / "run", *inputs, "trainer.max_steps=4")
    name = metrics.strip("[]").partition(",")[0]
    finite = numbers[f"val/{name}"] is not None
    assert not finite or math.isfinite(numbers[f"val/{name}"])
    if name == "pearson":
        assert not finite
        assert "The val/pearson is not finite" in numbers["warnings"][-1]
        assert "not finite" in capsys.readouterr().out
