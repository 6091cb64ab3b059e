"""Gates in other training programs, imported when they are first used: sentence-transformers takes seconds."""

from .sentence_trainers import GatedCrossEncoderTrainer, GatedSentenceTransformerTrainer
from .trainer import GatedTrainer, GatedTrainerMixin
from .wrappers import without_autocast

__all__ = [
    "GatedCrossEncoderTrainer",
    "GatedSentenceTransformerTrainer",
    "GatedTrainer",
    "GatedTrainerMixin",
    "without_autocast",
]
