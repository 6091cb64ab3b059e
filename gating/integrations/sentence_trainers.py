"""The trainers of sentence-transformers with gates."""

from sentence_transformers import CrossEncoderTrainer, SentenceTransformerTrainer

from gating.integrations.trainer import GatedTrainerMixin


class GatedSentenceTransformerTrainer(GatedTrainerMixin, SentenceTransformerTrainer):
    """sentence-transformers' trainer of embedding models with gates: search, removal of heads, and recovery.

    Gates are put on the transformer inside of the model; pooling and other modules stay. The compact folder loads by
    ``SentenceTransformer(folder, trust_remote_code=True)``.
    """


class GatedCrossEncoderTrainer(GatedTrainerMixin, CrossEncoderTrainer):
    """sentence-transformers' trainer of cross-encoders with gates, as :class:`GatedSentenceTransformerTrainer`.

    The compact folder loads by ``CrossEncoder(folder, trust_remote_code=True)``.
    """
