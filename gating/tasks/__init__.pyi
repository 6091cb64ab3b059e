"""Tasks that a model is trained for, imported when they are first used."""

from .blocks import MaskedLM
from .causal_lm import CausalLM
from .embedding import Embedding
from .image_classification import ImageClassification
from .question_answering import QuestionAnswering
from .seq2seq import Seq2Seq
from .sequence_classification import Regression, SequenceClassification
from .token_classification import TokenClassification

__all__ = [
    "CausalLM",
    "Embedding",
    "ImageClassification",
    "MaskedLM",
    "QuestionAnswering",
    "Regression",
    "Seq2Seq",
    "SequenceClassification",
    "TokenClassification",
]
