"""Tasks that a model is trained for, one per module."""

from gating.tasks.causal_lm import CausalLM
from gating.tasks.embedding import Embedding
from gating.tasks.image_classification import ImageClassification
from gating.tasks.masked_lm import MaskedLM
from gating.tasks.question_answering import QuestionAnswering
from gating.tasks.regression import Regression
from gating.tasks.seq2seq import Seq2Seq
from gating.tasks.sequence_classification import SequenceClassification
from gating.tasks.token_classification import TokenClassification

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
