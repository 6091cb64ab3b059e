"""The distance of embeddings to a teacher's, as a loss of sentence-transformers."""

import torch
from sentence_transformers.sentence_transformer.losses import EmbedDistillLoss
from torch import Tensor, nn
from torch.nn import functional


class EmbeddingDistance(EmbedDistillLoss):
    """The mean of ``1 - cosine``, plus the mean squared difference of the cosines between all texts of a batch.

    The second term keeps neighbors (similarity-preserving distillation, Tung and Mori 2019, arXiv 1907.09682). For a
    teacher of another width it is the whole loss. As in the base class, the labels are embeddings of the teacher:
    ``[batch, width]`` for one column of texts, or ``[batch, columns, width]``, in a column ``label`` of the data.

    Example:
        >>> loss = EmbeddingDistance(nn.Identity())
        >>> vectors = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
        >>> loss([{"sentence_embedding": vectors}], vectors)
        tensor(0.)
    """

    def __init__(self, model: nn.Module, similarity_weight: float = 5.0) -> None:
        """Store the model, a ``SentenceTransformer``, and the weight of the similarities within a batch."""
        super().__init__(model)  # type: ignore[arg-type]
        self.similarity_weight = similarity_weight

    def compute_loss_from_embeddings(self, embeddings: list[Tensor], teacher_embeddings: list[Tensor]) -> Tensor:
        """Return the distance, a scalar, of lists of embeddings, ``[batch, width]`` each."""
        with torch.autocast(device_type=embeddings[0].device.type, enabled=False):
            own, other = (
                functional.normalize(torch.cat(vectors).float(), dim=-1) for vectors in (embeddings, teacher_embeddings)
            )
            distance = self.similarity_weight * functional.mse_loss(own @ own.T, other @ other.T)
            if own.shape == other.shape:
                distance = distance + (1 - (own * other).sum(-1)).mean()
            return distance
