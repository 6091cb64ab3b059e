"""Losses of sentence embeddings."""

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import losses

from gating.embedding.losses import PAIR_LOSSES, embedding_distance, pair_loss
from tests.support.tiny_sentences import make_sentence_model, sentences_of


def test_distance_is_that_of_the_formula():
    own = torch.tensor([[1.0, 0.0], [0.0, 2.0]], requires_grad=True)
    teacher = torch.tensor([[3.0, 0.0], [1.0, 1.0]])
    # Cosines to the teacher: 1 and sqrt(1/2); similarities: 0 in one, sqrt(1/2) in the other, twice of four.
    root = 0.5**0.5
    loss = embedding_distance(own, teacher, similarity_weight=5.0)
    assert loss.item() == pytest.approx((1 - root) / 2 + 5 * 2 * 0.5 / 4)
    assert embedding_distance(own, teacher, similarity_weight=0.0).item() == pytest.approx((1 - root) / 2)
    loss.backward()
    assert own.grad is not None
    assert own.grad.isfinite().all()


def test_a_teacher_of_another_width_has_similarities_alone():
    own, teacher = torch.eye(3), torch.tensor([[1.0, 0], [1.0, 0], [0, 1.0]])
    assert embedding_distance(own, teacher, similarity_weight=9.0).item() == pytest.approx(9 * 2 / 9)
    assert embedding_distance(own, teacher, similarity_weight=0.0).item() == 0


@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_losses_of_pairs_are_those_of_the_package_on_the_same_texts(name, tmp_path):
    model = SentenceTransformer(str(make_sentence_model(tmp_path / "model")), device="cpu").eval()
    columns = [sentences_of(6), sentences_of(6, seed=1)]
    scores = torch.tensor([0.0, 0.2, 0.4, 0.6, 0.8, 1.0]) if name == "cosine" else None
    with torch.no_grad():
        expected = getattr(losses, PAIR_LOSSES[name])(model)([model.preprocess(texts) for texts in columns], scores)
        embeddings = [model.encode(texts, convert_to_tensor=True) for texts in columns]
        assert pair_loss(name, *embeddings, scores).item() == pytest.approx(expected.item(), abs=1e-6)
