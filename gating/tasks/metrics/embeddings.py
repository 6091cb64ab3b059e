"""Metrics of sentence embeddings: similarity of pairs, retrieval, and the neighbors of a dense model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torchmetrics import Metric, MetricCollection
from torchmetrics.functional import pearson_corrcoef, spearman_corrcoef
from torchmetrics.functional.retrieval import retrieval_normalized_dcg, retrieval_recall
from torchmetrics.utilities import dim_zero_cat

from gating.errors import InputError, nearest_name
from gating.report.score import Score

__all__ = ["METRICS", "Embedded", "build_embedding_metrics"]

# Number of nearest texts that are compared, and of texts that are searched for at once.
_NEAREST = 10
_CHUNK = 512


@dataclass(frozen=True)
class Embedded:
    """Embeddings of a batch or of all texts of a split, and those that they are compared with.

    Attributes:
        texts: Embeddings of the texts, ``[batch, width]``.
        pairs: Embeddings of the second texts, ``[batch, width]``.
        scores: Similarity of each pair, ``[batch]``.
        queries: Number of each text, the same for equal texts, ``[batch]``.
        documents: Number of each second text, ``[batch]``.
        teacher: Embeddings of the texts by the dense model, ``[batch, width of the teacher]``.
    """

    texts: Tensor
    pairs: Tensor | None = None
    scores: Tensor | None = None
    queries: Tensor | None = None
    documents: Tensor | None = None
    teacher: Tensor | None = None


_NAMES = tuple(field.name for field in fields(Embedded))


def _similarity(all: Embedded) -> tuple[Tensor, Tensor]:
    assert all.pairs is not None
    assert all.scores is not None
    return functional.cosine_similarity(all.texts.double(), all.pairs.double()), all.scores.double()


def _correlation(all: Embedded, function: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Return a correlation of the similarities with the scores; NaN, as none is defined, where all are equal."""
    similarities, scores = _similarity(all)
    if any(bool((numbers == numbers[0]).all()) for numbers in (similarities, scores)):
        return torch.tensor(torch.nan)
    return function(similarities, scores)


def _retrieved(all: Embedded, measure: Callable[..., Tensor]) -> Tensor:
    """Return the mean of a measure of the first ten documents over all distinct queries."""
    assert all.pairs is not None
    assert all.queries is not None
    assert all.documents is not None
    queries, documents = (_first_of(numbers) for numbers in (all.queries, all.documents))
    found = functional.normalize(all.texts[queries], dim=-1) @ functional.normalize(all.pairs[documents], dim=-1).T
    values = []
    for row, query in enumerate(all.queries[queries]):
        right = all.documents[all.queries == query]
        relevant = torch.isin(all.documents[documents], right)
        values.append(measure(found[row], relevant, top_k=min(_NEAREST, len(documents))))
    return torch.stack(values).mean()


def _first_of(numbers: Tensor) -> Tensor:
    """Return the place of the first row with each number."""
    return torch.from_numpy(np.unique(numbers.numpy(), return_index=True)[1])


def _agreement(all: Embedded) -> Tensor:
    """Return the share of the ten nearest texts that are among the ten nearest of the dense model."""
    assert all.teacher is not None
    rows = torch.arange(len(all.texts)) if all.queries is None else _first_of(all.queries)
    own, other = (functional.normalize(vectors[rows].float(), dim=-1) for vectors in (all.texts, all.teacher))
    number = min(_NEAREST, len(rows) - 1)
    if number < 1:
        return torch.tensor(torch.nan)
    shared = 0
    for start in range(0, len(rows), _CHUNK):
        nearest = []
        for vectors in (own, other):
            near = vectors[start : start + _CHUNK] @ vectors.T
            near[torch.arange(len(near)), torch.arange(start, start + len(near))] = -torch.inf
            nearest.append(near.topk(number).indices)
        shared += int((nearest[0].unsqueeze(-1) == nearest[1].unsqueeze(-2)).sum())
    return torch.tensor(shared / (number * len(rows)))


def _cosine(all: Embedded) -> Tensor:
    assert all.teacher is not None
    if all.texts.shape != all.teacher.shape:
        return torch.tensor(torch.nan)
    return functional.cosine_similarity(all.texts.double(), all.teacher.double()).mean()


# Metrics by name: their function, the parts of a batch that they need, and their format.
METRICS: dict[str, tuple[Callable[[Embedded], Tensor], tuple[str, ...], Score]] = {
    "spearman": (lambda all: _correlation(all, spearman_corrcoef), ("scores",), Score("spearman", unit="")),
    "pearson": (lambda all: _correlation(all, pearson_corrcoef), ("scores",), Score("pearson", unit="")),
    "ndcg": (lambda all: _retrieved(all, retrieval_normalized_dcg), ("documents",), Score("ndcg")),
    "recall": (lambda all: _retrieved(all, retrieval_recall), ("documents",), Score("recall")),
    "agreement": (_agreement, ("teacher",), Score("agreement")),
    "cosine": (_cosine, ("teacher",), Score("cosine")),
}


def build_embedding_metrics(
    chosen: Sequence[str] | None, score: str | None, *, present: Sequence[str]
) -> tuple[MetricCollection, Score]:
    """Return the metrics of embeddings, and the score by which runs are compared.

    Args:
        chosen: Names; by default all that the data allow.
        score: Name of the metric to report; the first if None.
        present: Parts of :class:`Embedded` that the data have.

    Raises:
        InputError: The data lack what a metric needs.
    """
    possible = [name for name, (_, needs, _) in METRICS.items() if set(needs) <= set(present)]
    names = list(chosen or possible)
    if not names:
        raise InputError(
            "These texts have nothing to compare their embeddings with: give pairs with a score, pairs that belong "
            "together, or a dense model with task.teacher=FOLDER_OR_HUB_NAME."
        )
    for name in names:
        if name not in possible:
            raise InputError(
                f"task.metrics has {name!r}, which these data do not have. They allow {', '.join(possible) or 'none'}: "
                "spearman and pearson need a score for each pair, ndcg and recall pairs without scores, agreement and "
                "cosine a teacher."
            )
    if score is not None and score not in names:
        raise InputError(f"task.score={score} is not among {', '.join(names)}. {nearest_name(score, names)}")
    collection = MetricCollection(
        {name: (_Share if METRICS[name][2].unit else _OfEmbeddings)(name) for name in names}, compute_groups=False
    )
    return collection, METRICS[score or names[0]][2]


class _OfEmbeddings(Metric):
    """A metric of all embeddings of a split."""

    full_state_update = False
    higher_is_better = True

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        for part in _NAMES:
            self.add_state(part, [], dist_reduce_fx="cat")

    def update(self, batch: Embedded) -> None:
        """Add the embeddings of a batch."""
        for part in _NAMES:
            value = getattr(batch, part)
            if value is not None:
                getattr(self, part).append(value)

    def compute(self) -> Tensor:
        """Return the metric of all batches."""
        parts = {part: getattr(self, part) for part in _NAMES}
        all = Embedded(**{part: dim_zero_cat(values).cpu() for part, values in parts.items() if len(values)})
        return METRICS[self.name][0](all).float().to(self.device)


class _Share(_OfEmbeddings):
    """A metric that is shown as a percentage."""

    plot_lower_bound = 0.0
    plot_upper_bound = 1.0
