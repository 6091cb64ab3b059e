"""Quality of sentence embeddings."""

from collections.abc import Callable

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import (
    EmbeddingSimilarityEvaluator,
    InformationRetrievalEvaluator,
)
from sentence_transformers.util import semantic_search
from torch import Tensor

from benchmarks.embeddings.sets import Retrieval, Sets

_NEAREST = 10
# For each sentence, the numbers of its nearest ones.
Neighbors = list[set[int]]


def measure_quality(model: SentenceTransformer, sets: Sets, dense: Neighbors) -> dict[str, float]:
    """Return the quality of a model's embeddings, each out of 100.

    Args:
        model: The model.
        sets: Evaluation sets.
        dense: Neighbors of the sentences by the dense model.

    Returns:
        Spearman correlation of similarities with those that people gave (``sick``, ``stsb``); the discounted gain and
        the recall of the first ten documents (``bbc_ndcg``, ``bbc_recall``, and so on); and the share of the ten
        nearest sentences that are also the dense model's (``neighbors``).
    """
    found: dict[str, float] = {}
    for name, pairs in sets.pairs.items():
        similarity = EmbeddingSimilarityEvaluator(*pairs, main_similarity="cosine", write_csv=False)
        found[name] = 100 * similarity(model)["spearman_cosine"]
    for name, retrieval in sets.retrieval.items():
        scores = _evaluator(retrieval)(model)
        found[f"{name}_ndcg"] = 100 * scores["cosine_ndcg@10"]
        found[f"{name}_recall"] = 100 * scores["cosine_recall@10"]
    own = nearest(model, sets.sentences)
    shared = sum(len(one & other) for one, other in zip(own, dense, strict=True))
    return found | {"neighbors": 100 * shared / (_NEAREST * len(own))}


def nearest(model: SentenceTransformer, sentences: list[str]) -> Neighbors:
    """Return for each sentence the numbers of the ten others whose embeddings are nearest."""
    embeddings = model.encode(sentences, convert_to_tensor=True)
    hits = semantic_search(embeddings, embeddings, top_k=_NEAREST + 1)
    return [
        set([int(hit["corpus_id"]) for hit in found if hit["corpus_id"] != number][:_NEAREST])
        for number, found in enumerate(hits)
    ]


def _evaluator(retrieval: Retrieval) -> InformationRetrievalEvaluator:
    # Models of one module without a pooling name no similarity.
    cosine: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"cosine": _cosine}
    return InformationRetrievalEvaluator(
        {str(number): query for number, query in enumerate(retrieval.queries)},
        {str(number): document for number, document in enumerate(retrieval.documents)},
        {str(number): {str(answer)} for number, answer in enumerate(retrieval.answers)},
        ndcg_at_k=[_NEAREST],
        precision_recall_at_k=[_NEAREST],
        write_csv=False,
        score_functions=cosine,
    )


def _cosine(one: Tensor, other: Tensor) -> Tensor:
    return torch.nn.functional.normalize(one, dim=-1) @ torch.nn.functional.normalize(other, dim=-1).T
