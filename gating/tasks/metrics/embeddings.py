"""Metrics of sentence embeddings: similarity of pairs, retrieval, and the neighbors of a dense model."""

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from sentence_transformers.util import semantic_search
from torch import Tensor
from torch.nn import functional
from torchmetrics import Metric, MetricCollection
from torchmetrics.functional import pearson_corrcoef, spearman_corrcoef
from torchmetrics.utilities import dim_zero_cat

from gating.errors import InputError
from gating.report.score import Score
from gating.tasks.metrics.choice import ChosenMetrics

# Number of nearest texts that are compared.
_NEAREST = 10


@dataclass(frozen=True)
class Embedded:
    """Embeddings of a batch or of all texts of a split, and those that they are compared with.

    Attributes:
        texts: Embeddings of the texts, ``[batch, width]``.
        queries: Number of each text, the same for equal texts, ``[batch]``.
        pairs: Embeddings of the second texts, ``[batch, width]``.
        scores: Similarity of each pair, ``[batch]``.
        documents: Number of each second text, ``[batch]``.
        teacher: Embeddings of the texts by the dense model, ``[batch, width of the teacher]``.
    """

    texts: Tensor
    queries: Tensor
    pairs: Tensor | None = None
    scores: Tensor | None = None
    documents: Tensor | None = None
    teacher: Tensor | None = None


_PARTS = tuple(field.name for field in fields(Embedded))


def _correlation(all: Embedded, function: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    assert all.pairs is not None
    assert all.scores is not None
    if (all.scores == all.scores[0]).all():
        return torch.tensor(torch.nan)  # That of ranks would be 0.
    return function(functional.cosine_similarity(all.texts.double(), all.pairs.double()), all.scores.double())


def _ranks(all: Embedded) -> tuple[Tensor, Tensor]:
    """Return which of the first ten documents are right for each distinct query, and the number of right ones."""
    assert all.pairs is not None
    assert all.documents is not None
    rows, first = _first_of(all.queries), _first_of(all.documents)
    queries, documents = all.queries[rows].tolist(), all.documents[first].tolist()
    right = set(zip(all.queries.tolist(), all.documents.tolist(), strict=True))
    number = Counter(query for query, _ in right)
    found = semantic_search(_directions(all.texts[rows]), _directions(all.pairs[first]), top_k=_NEAREST)
    hits = [
        [(query, documents[int(hit["corpus_id"])]) in right for hit in near]
        for query, near in zip(queries, found, strict=True)
    ]
    return torch.tensor(hits).double(), torch.tensor([number[query] for query in queries])


def _recall(all: Embedded) -> Tensor:
    hits, number = _ranks(all)
    return (hits.sum(-1) / number).mean()


def _ndcg(all: Embedded) -> Tensor:
    hits, number = _ranks(all)
    gains = 1 / torch.arange(2, 2 + hits.shape[1]).double().log2()
    best = gains.cumsum(0)[number.clamp_max(hits.shape[1]) - 1]
    return (hits @ gains / best).mean()


def _directions(vectors: Tensor) -> Tensor:
    """Return vectors of length 1; squares of very large and small values need double precision."""
    return functional.normalize(vectors.double(), dim=-1, eps=1e-300).float()


def _first_of(numbers: Tensor) -> Tensor:
    """Return the place of the first row with each number."""
    return torch.from_numpy(np.unique(numbers.numpy(), return_index=True)[1])


def _neighbors(vectors: Tensor, number: int) -> list[set[int | float]]:
    """Return the numbers of the texts that are nearest to each, without itself."""
    directions = _directions(vectors)
    found = semantic_search(directions, directions, top_k=number + 1)
    ids = ([hit["corpus_id"] for hit in near if hit["corpus_id"] != row] for row, near in enumerate(found))
    return [set(near[:number]) for near in ids]


def _agreement(all: Embedded) -> Tensor:
    """Return the share of the ten nearest texts that are among the ten nearest of the dense model."""
    assert all.teacher is not None
    rows = _first_of(all.queries)
    # All others would be the nearest of any model.
    number = min(_NEAREST, (len(rows) - 1) // 2)
    if number < 1:
        return torch.tensor(torch.nan)
    own, other = (_neighbors(vectors[rows], number) for vectors in (all.texts, all.teacher))
    shared = [len(one & two) / number for one, two in zip(own, other, strict=True)]
    return torch.tensor(shared, dtype=torch.float64).mean()


def _cosine(all: Embedded) -> Tensor:
    assert all.teacher is not None
    if all.texts.shape != all.teacher.shape:
        return torch.tensor(torch.nan)
    return functional.cosine_similarity(all.texts.double(), all.teacher.double()).mean()


# Metrics by name: their function, what the data must have, and their format. Retrieval is computed as by the
# InformationRetrievalEvaluator of sentence-transformers; that of torchmetrics leaves out cosines below 0.
METRICS: dict[str, tuple[Callable[[Embedded], Tensor], str, Score]] = {
    "spearman": (lambda all: _correlation(all, spearman_corrcoef), "scores", Score("spearman", unit="")),
    "pearson": (lambda all: _correlation(all, pearson_corrcoef), "scores", Score("pearson", unit="")),
    "ndcg": (_ndcg, "positives", Score("ndcg")),
    "recall": (_recall, "positives", Score("recall")),
    "agreement": (_agreement, "teacher", Score("agreement")),
    "cosine": (_cosine, "teacher", Score("cosine")),
}


def build_embedding_metrics(chosen: ChosenMetrics, *, present: Collection[str]) -> tuple[MetricCollection, Score]:
    """Return the metrics of embeddings, by default all that the data allow, and the score by which runs are compared.

    The data have ``scores`` of pairs, or pairs that are ``positives``, and perhaps a ``teacher``.
    """
    possible = [name for name, (_, needed, _) in METRICS.items() if needed in present]
    names = list(chosen.read(possible or list(METRICS)))
    for name in names:
        if name not in possible:
            raise InputError(
                f"task.metrics has {name!r}, and these data allow {', '.join(possible) or 'none'}: spearman and "
                "pearson need pairs with a score, ndcg and recall pairs that belong together, agreement and cosine a "
                "dense model, such as task.teacher=FOLDER_OR_HUB_NAME."
            )
    return MetricCollection([EmbeddingScores(names)]), METRICS[chosen.score or names[0]][2]


class EmbeddingScores(Metric):
    """Metrics of all embeddings of a split, by name."""

    full_state_update = False
    higher_is_better = True

    def __init__(self, names: Sequence[str]) -> None:
        """Store the names, those of :data:`METRICS`."""
        super().__init__()
        self._names = names
        self.formats = {name: METRICS[name][2] for name in names}
        for part in _PARTS:
            self.add_state(part, [], dist_reduce_fx="cat")

    def update(self, batch: Embedded) -> None:
        """Add the embeddings of a batch."""
        for part in _PARTS:
            value = getattr(batch, part)
            if value is not None:
                getattr(self, part).append(value)

    def compute(self) -> dict[str, Tensor]:
        """Return the metrics of all batches; NaN if an embedding is not finite, as of a model that has diverged."""
        parts = {part: getattr(self, part) for part in _PARTS}
        all = Embedded(**{part: dim_zero_cat(values).cpu() for part, values in parts.items() if len(values)})
        vectors = [part for part in (all.texts, all.pairs, all.teacher) if part is not None]
        if any(not part.isfinite().all() for part in vectors):
            return dict.fromkeys(self._names, torch.tensor(torch.nan, device=self.device))
        return {name: METRICS[name][0](all).float().to(self.device) for name in self._names}
