"""Losses of sentence embeddings: the distance to a teacher, and losses of sentence-transformers on pairs."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["PAIR_LOSSES", "embedding_distance", "pair_loss"]

# Losses of pairs by their settings: with a score for each pair, and with pairs that belong together.
PAIR_LOSSES = {"cosine": "CosineSimilarityLoss", "multiple_negatives": "MultipleNegativesRankingLoss"}


def embedding_distance(embeddings: Tensor, teacher: Tensor, *, similarity_weight: float = 5.0) -> Tensor:
    """Return the distance of embeddings to a teacher's, a scalar.

    The mean of ``1 - cosine``, plus the mean squared difference of the cosines between all texts of the batch, which
    keeps neighbors (similarity-preserving distillation, Tung and Mori 2019, arXiv 1907.09682). For a teacher of another
    width, the second term alone.

    Args:
        embeddings: Embeddings of the trained model, ``[batch, width]``; differentiable.
        teacher: Embeddings of the teacher for the same texts, ``[batch, width of the teacher]``.
        similarity_weight: Weight of the second term.

    Example:
        >>> vectors = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
        >>> embedding_distance(vectors, vectors)
        tensor(0.)
    """
    with torch.autocast(device_type=embeddings.device.type, enabled=False):
        own, other = (functional.normalize(vectors.float(), dim=-1) for vectors in (embeddings, teacher))
        distance = similarity_weight * functional.mse_loss(own @ own.T, other @ other.T)
        if own.shape == other.shape:
            distance = distance + (1 - (own * other).sum(-1)).mean()
        return distance


def pair_loss(name: str, first: Tensor, second: Tensor, scores: Tensor | None) -> Tensor:
    """Return a loss of sentence-transformers on pairs of embeddings, a scalar.

    Args:
        name: Name in :data:`PAIR_LOSSES`.
        first: Embeddings of the first texts, ``[batch, width]``.
        second: Embeddings of the second texts, ``[batch, width]``.
        scores: Similarity of each pair from 0 to 1, ``[batch]``; None for pairs that belong together.
    """
    features = [{"sentence_embedding": first}, {"sentence_embedding": second}]
    loss: Tensor = _loss(name)(features, scores)
    return loss


@cache
def _loss(name: str) -> Callable[..., Any]:
    from sentence_transformers.sentence_transformer import losses

    made: Callable[..., Any] = getattr(losses, PAIR_LOSSES[name])(model=_Embedded())
    return made


class _Embedded(nn.Module):
    """Model in the losses of the package, which are given embeddings in place of texts."""

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return features
