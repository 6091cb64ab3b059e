"""BLEU and chrF equal those of sacrebleu, also for few and short texts."""

import random

import pytest
import sacrebleu
import torch
from torchmetrics import MetricCollection

from gating.tasks.metrics.texts import SacreScore

WORDS = [
    "the",
    "a",
    "cat",
    "dog",
    "sat",
    "on",
    "mat",
    ",",
    ".",
    "ran's",
    "home-made",
    "3.5",
    "!",
    "(fast)",
    '"slow"',
    "über",
    "Straße",
    "&amp;",
    "x-y",
]


def texts(number, seed):
    rng = random.Random(seed)
    right = [" ".join(rng.choices(WORDS, k=rng.randint(1, 9))) for _ in range(number)]
    written = [" ".join(word for word in text.split() if rng.random() < 0.8) for text in right]
    return written, right


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("number", [1, 2, 7, 40])
def test_scores_are_those_of_sacrebleu_for_any_batches(number, seed):
    written, right = texts(number, seed)
    metrics = MetricCollection({name: SacreScore(name) for name in ("bleu", "chrf")}, compute_groups=False)
    for start in range(0, number, 3):
        for metric in metrics.values():
            metric.update(written[start : start + 3], right[start : start + 3])
    scores = metrics.clone().compute()
    assert 100 * scores["bleu"].item() == pytest.approx(sacrebleu.corpus_bleu(written, [right]).score, abs=1e-9)
    assert 100 * scores["chrf"].item() == pytest.approx(sacrebleu.corpus_chrf(written, [right]).score, abs=1e-9)


def test_counts_are_summed_over_processes_and_reset():
    written, right = texts(6, 0)
    whole, other = SacreScore("bleu"), SacreScore("bleu")
    whole.update(written[:2], right[:2])
    other.update(written[2:], right[2:])
    whole.counts += other.counts
    assert 100 * whole.compute().item() == pytest.approx(sacrebleu.corpus_bleu(written, [right]).score, abs=1e-9)
    whole.reset()
    assert torch.equal(whole.counts, torch.zeros_like(whole.counts))


def test_equal_texts_score_one_and_empty_texts_zero():
    for name in ("bleu", "chrf"):
        metric = SacreScore(name)
        metric.update(["a cat sat on the mat ."], ["a cat sat on the mat ."])
        assert metric.compute().item() == pytest.approx(1)
        metric.reset()
        metric.update([""], ["a cat sat on the mat ."])
        assert metric.compute().item() == 0
