"""Metrics of tagged spans equal those of seqeval."""

import random

import pytest
import torch
from torchmetrics import MetricCollection

from gating.tasks.metrics.tags import SpanScore, find_spans

NAMES = ["O", *(f"{mark}-{kind}" for mark in "BIES" for kind in ("person", "creative-work"))]


@pytest.mark.parametrize(
    ("tags", "spans"),
    [
        ("O O", []),
        ("B-a I-a O", [("a", 0, 1)]),
        ("B-a B-a", [("a", 0, 0), ("a", 1, 1)]),
        ("I-a I-b", [("a", 0, 0), ("b", 1, 1)]),
        ("O I-a", [("a", 1, 1)]),
        ("B-a E-a I-a", [("a", 0, 1), ("a", 2, 2)]),
        ("S-a E-a", [("a", 0, 0), ("a", 1, 1)]),
    ],
)
def test_spans_are_found(tags, spans):
    assert list(find_spans(tags.split())) == spans


def random_tags(rng: random.Random, rows: int) -> list[list[str]]:
    return [rng.choices(NAMES, weights=[3] + [1] * 8, k=rng.randint(1, 12)) for _ in range(rows)]


def as_numbers(rows: list[list[str]]) -> torch.Tensor:
    numbers = [torch.tensor([NAMES.index(tag) for tag in row]) for row in rows]
    return torch.nn.utils.rnn.pad_sequence(numbers, batch_first=True, padding_value=-100)


def test_scores_are_those_of_seqeval_to_the_digit():
    """On random tags, some malformed, in several batches."""
    seqeval = pytest.importorskip("seqeval.metrics", reason="seqeval is not installed")
    rng = random.Random(0)
    expected = random_tags(rng, 40)
    predicted = [[tag if rng.random() < 0.6 else rng.choice(NAMES) for tag in row] for row in expected]
    metrics = MetricCollection({kind: SpanScore(NAMES, kind=kind) for kind in ("f1", "precision", "recall")})
    for start in range(0, 40, 16):
        metrics.update(as_numbers(predicted[start : start + 16]).clamp_min(0), as_numbers(expected[start : start + 16]))
    found = {name: float(value) for name, value in metrics.compute().items()}
    for name in found:
        reference = getattr(seqeval, f"{name}_score")(expected, predicted)
        assert 0.1 < reference < 0.9
        assert found[name] == pytest.approx(reference, abs=1e-7)


def test_tokens_without_a_tag_are_ignored():
    metric = SpanScore(["O", "B-a", "I-a"], kind="f1")
    # Predictions for the later tokens of a word are ignored.
    metric.update(torch.tensor([[1, 0, 2]]), torch.tensor([[1, -100, 2]]))
    assert metric.compute() == 1


def test_no_predicted_and_no_expected_span_is_zero():
    metric = SpanScore(["O", "B-a"], kind="f1")
    metric.update(torch.tensor([[0]]), torch.tensor([[0]]))
    assert metric.compute() == 0
