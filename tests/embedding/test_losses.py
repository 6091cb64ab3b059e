"""Losses of sentence embeddings."""

import pytest
import torch
from sentence_transformers import SentenceTransformer
from torch import nn

from gating.embedding.losses import EmbeddingDistance
from tests.support.tiny_sentences import make_sentence_model, sentences_of


def distance(own, teacher, *, weight=5.0):
    return EmbeddingDistance(nn.Identity(), weight)([{"sentence_embedding": own}], teacher).item()


def test_distance_is_that_of_the_formula():
    own = torch.tensor([[1.0, 0.0], [0.0, 2.0]], requires_grad=True)
    teacher = torch.tensor([[3.0, 0.0], [1.0, 1.0]])
    # Cosines to the teacher: 1 and sqrt(1/2); similarities: 0 in one, sqrt(1/2) in the other, twice of four.
    root = 0.5**0.5
    loss = EmbeddingDistance(nn.Identity())([{"sentence_embedding": own}], teacher)
    assert loss.item() == pytest.approx((1 - root) / 2 + 5 * 2 * 0.5 / 4)
    assert distance(own, teacher, weight=0.0) == pytest.approx((1 - root) / 2)
    loss.backward()
    assert own.grad is not None
    assert own.grad.isfinite().all()


def test_a_teacher_of_another_width_has_similarities_alone():
    own, teacher = torch.eye(3), torch.tensor([[1.0, 0], [1.0, 0], [0, 1.0]])
    assert distance(own, teacher, weight=9.0) == pytest.approx(9 * 2 / 9)
    assert distance(own, teacher, weight=0.0) == 0


def test_the_loss_is_one_of_the_package(tmp_path):
    """Embeddings of one column of texts and of two, given as labels, are compared in one batch."""
    model = SentenceTransformer(str(make_sentence_model(tmp_path / "model")), device="cpu").eval()
    columns = [sentences_of(6), sentences_of(6, seed=1)]
    features = [model.preprocess(texts) for texts in columns]
    vectors = [model.encode(texts, convert_to_tensor=True) for texts in columns]
    loss = EmbeddingDistance(model, similarity_weight=2.0)
    labels = torch.randn(6, 2, 5)
    assert loss(features[:1], labels[:, 0]).item() == pytest.approx(
        distance(vectors[0], labels[:, 0], weight=2.0), abs=1e-6
    )
    assert loss(features, labels).item() == pytest.approx(
        distance(torch.cat(vectors), labels.transpose(0, 1).flatten(0, 1), weight=2.0), abs=1e-6
    )
