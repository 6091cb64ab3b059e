"""Tasks that a model is trained for, one per module, imported when they are first used."""

from .causal_lm import CausalLM
from .embedding import Embedding
from .image_classification import ImageClassification
from .masked_lm import MaskedLM
from .question_answering import QuestionAnswering
from .regression import Regression
from .seq2seq import Seq2Seq
from .sequence_classification import SequenceClassification
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
