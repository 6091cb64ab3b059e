"""The tasks: each file is one, and says what models, batches and metrics it takes."""

from gating.lightning.tasks.causal_lm import CausalLM
from gating.lightning.tasks.image_classification import ImageClassification
from gating.lightning.tasks.masked_lm import MaskedLM
from gating.lightning.tasks.question_answering import QuestionAnswering
from gating.lightning.tasks.regression import Regression
from gating.lightning.tasks.seq2seq import Seq2Seq
from gating.lightning.tasks.sequence_classification import SequenceClassification
from gating.lightning.tasks.token_classification import TokenClassification

__all__ = [
    "CausalLM",
    "ImageClassification",
    "MaskedLM",
    "QuestionAnswering",
    "Regression",
    "Seq2Seq",
    "SequenceClassification",
    "TokenClassification",
]
