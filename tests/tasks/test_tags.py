"""Tags of tokens as numbers, and metrics of spans, which equal those of seqeval."""

import random

import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from torchmetrics import MetricCollection

from gating.tasks.token_classification import SpanScore, encode_tags, find_spans, mark_spans


def splits(**columns) -> DatasetDict:
    table = Dataset.from_dict(columns)
    return DatasetDict(train=table, validation=table)


def test_strings_and_lists_give_the_same_tags():
    one = encode_tags(splits(text=["a b", "c"], label=["O B-x", "I-x"]))
    other = encode_tags(splits(text=[["a", "b"], ["c"]], label=[["O", "B-x"], ["I-x"]]))
    assert one[1] == other[1] == ["B-x", "I-x", "O"]
    for encoded, _ in (one, other):
        assert encoded["validation"][:] == {"words": [["a", "b"], ["c"]], "tags": [[2, 0], [1]]}


def test_declared_classes_keep_their_order():
    features = Features({"text": List(Value("string")), "label": List(ClassLabel(names=["O", "B-y", "B-x"]))})
    table = Dataset.from_dict({"text": [["a", "b"]], "label": [[2, 0]]}, features=features)
    encoded, names = encode_tags(DatasetDict(train=table))
    assert names == ["O", "B-y", "B-x"]
    assert encoded["train"]["tags"][0] == [2, 0]


def test_a_tag_that_only_the_test_has_gets_a_number_too():
    train, test = (Dataset.from_dict({"text": ["a b"], "label": [tags]}) for tags in ("O B-x", "O B-y"))
    assert encode_tags(DatasetDict(train=train, test=test))[1] == ["B-x", "B-y", "O"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text": ["a b"], "label": ["O"]}, "2 words but 1 tags in row 1.*task=sequence_classification"),
        ({"text": ["a b"], "label": [3]}, "2 words but 0 tags in row 1"),
        ({"text": ["a b"], "label": ["O O"]}, "at least two"),
        ({"text": [["a", "b"]], "label": [["O", None]]}, "in row 1, or some are missing"),
        ({"text": [["a", None]], "label": [["O", "B-x"]]}, "in row 1, or some are missing"),
        ({"text": ["a", ""], "label": ["O", ""]}, "0 words but 0 tags in row 2"),
    ],
)
def test_invalid_tags_are_named(columns, message):
    with pytest.raises(ValueError, match=message):
        encode_tags(splits(**columns))


def test_tags_of_spans_are_recognized():
    assert mark_spans(["O", "B-x", "I-x", "S-creative-work"])
    assert not mark_spans(["O", "NOUN"])
    assert not mark_spans(["0", "1"])


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
