"""Metrics of sentence embeddings, compared with other implementations."""

import math

import pytest
import torch
from scipy.stats import pearsonr, spearmanr
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import (
    EmbeddingSimilarityEvaluator,
    InformationRetrievalEvaluator,
)
from torch import Tensor
from torch.nn import functional

from gating.errors import InputError
from gating.tasks.metrics.choice import ChosenMetrics
from gating.tasks.metrics.embeddings import METRICS, Embedded, build_embedding_metrics
from tests.support.tiny_sentences import make_sentence_model, sentences_of

GENERATOR = torch.Generator().manual_seed(0)


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=GENERATOR)


def measured(*batches: Embedded, present: list[str]) -> dict[str, float]:
    metrics, _ = build_embedding_metrics(ChosenMetrics(None, None, METRICS), present=present)
    for batch in batches:
        metrics.update(batch)
    return {name: float(value) for name, value in metrics.compute().items()}


@pytest.fixture
def model(tmp_path) -> SentenceTransformer:
    return SentenceTransformer(str(make_sentence_model(tmp_path / "model")), device="cpu")


def embed(model: SentenceTransformer, texts: list[str]) -> Tensor:
    return model.encode(texts, convert_to_tensor=True).cpu().clone()


def test_correlations_are_those_of_scipy_and_of_the_package(model):
    first, second, scores = sentences_of(12), sentences_of(12, seed=1), torch.arange(12.0) % 5 / 5
    texts, pairs = embed(model, first), embed(model, second)
    numbers = torch.arange(12)
    halves = [Embedded(texts[rows], numbers[rows], pairs[rows], scores[rows]) for rows in (slice(0, 7), slice(7, 12))]
    found = measured(*halves, present=["scores"])
    similarity = functional.cosine_similarity(texts.double(), pairs.double())
    assert found == {
        "spearman": pytest.approx(spearmanr(similarity, scores).statistic, abs=1e-6),
        "pearson": pytest.approx(pearsonr(similarity, scores).statistic, abs=1e-6),
    }
    theirs = EmbeddingSimilarityEvaluator(first, second, scores.tolist(), write_csv=False)(model)
    assert found["spearman"] == pytest.approx(theirs["spearman_cosine"], abs=1e-5)
    equal = measured(Embedded(texts, numbers, pairs, torch.ones(12)), present=["scores"])
    assert all(map(math.isnan, equal.values()))


def test_retrieval_is_that_of_the_package(model):
    # Some queries have several documents, and some documents several queries.
    queries, documents = sentences_of(14), sentences_of(25, seed=1)
    pairs = [(number % 14, (3 * number) % 25) for number in range(30)]
    numbers = [torch.tensor(column) for column in zip(*pairs, strict=True)]
    texts, others = (embed(model, texts)[of] for texts, of in zip((queries, documents), numbers, strict=True))
    batches = [
        Embedded(texts[rows], numbers[0][rows], others[rows], documents=numbers[1][rows])
        for rows in (slice(0, 11), slice(11, 30))
    ]
    found = measured(*batches, present=["positives"])
    relevant: dict[str, set[str]] = {}
    for query, document in pairs:
        relevant.setdefault(str(query), set()).add(str(document))
    theirs = InformationRetrievalEvaluator(
        {str(number): text for number, text in enumerate(queries)},
        {str(number): documents[number] for number in sorted(set(numbers[1].tolist()))},
        relevant,
        ndcg_at_k=[10],
        precision_recall_at_k=[10],
        write_csv=False,
    )(model)
    assert found["ndcg"] == pytest.approx(theirs["cosine_ndcg@10"], abs=1e-6)
    assert found["recall"] == pytest.approx(theirs["cosine_recall@10"], abs=1e-6)


def test_agreement_counts_shared_neighbors():
    own, teacher = random(30, 4), random(30, 6)
    shared = 0
    for row in range(30):
        nearest = []
        for vectors in (own, teacher):
            near = functional.cosine_similarity(vectors, vectors[row : row + 1])
            nearest.append(set(sorted(set(range(30)) - {row}, key=lambda other: -near[other])[:10]))
        shared += len(nearest[0] & nearest[1])
    found = measured(
        Embedded(own[:20], torch.arange(20), teacher=teacher[:20]),
        Embedded(own[20:], torch.arange(20, 30), teacher=teacher[20:]),
        present=["teacher"],
    )
    assert found["agreement"] == pytest.approx(shared / 300)
    assert found["cosine"] != found["cosine"]  # vectors of another width


def test_a_model_agrees_with_itself():
    vectors = random(25, 5)
    assert measured(Embedded(vectors, torch.arange(25), teacher=2 * vectors), present=["teacher"]) == {
        "agreement": 1,
        "cosine": pytest.approx(1),
    }


@pytest.mark.parametrize("number", [1, 2, 5, 11])
def test_few_texts_do_not_make_unrelated_models_agree(number):
    """Also where each stands there many times."""
    rows = torch.arange(number).repeat(20)
    batch = Embedded(random(number, 9)[rows], rows, teacher=random(number, 9)[rows])
    agreement = measured(batch, present=["teacher"])["agreement"]
    assert agreement < 0.8 or (number < 3 and math.isnan(agreement))


@pytest.mark.parametrize(("shift", "size"), [(0.0, 1.0), (3.0, 1.0), (0.0, 1e25), (0.0, 1e-25)])
def test_retrieval_counts_documents_with_cosines_below_zero(shift, size):
    """Of embeddings of any size, compared with ranks that are counted one by one; with the shift all are negative."""
    number = 30
    queries, documents = random(number, 3) + shift, random(number, 3) - shift
    near = torch.stack([functional.cosine_similarity(query, documents) for query in queries])
    ranks = [int((near[row] > near[row, row]).sum()) for row in range(number)]
    assert any(rank < 10 and near[row, row] < 0 for row, rank in enumerate(ranks)) or not shift
    batch = Embedded(size * queries, torch.arange(number), size * documents, documents=torch.arange(number))
    assert measured(batch, present=["positives"]) == {
        "recall": pytest.approx(sum(rank < 10 for rank in ranks) / number),
        "ndcg": pytest.approx(sum(1 / math.log2(rank + 2) for rank in ranks if rank < 10) / number),
    }


@pytest.mark.parametrize("part", ["texts", "pairs", "teacher"])
def test_embeddings_that_are_not_finite_have_no_scores(part):
    parts = {name: random(12, 4) for name in ("texts", "pairs", "teacher")}
    parts[part][3, 1] = torch.nan
    numbers = torch.arange(12)
    scored = Embedded(**parts, queries=numbers, scores=torch.rand(12), documents=numbers)
    found = measured(scored, present=["scores", "positives", "teacher"])
    assert len(found) == 6
    assert all(map(math.isnan, found.values()))


def test_a_metric_that_the_data_do_not_have_is_told():
    with pytest.raises(InputError, match="'ndcg'"):
        build_embedding_metrics(ChosenMetrics(["ndcg"], None, METRICS), present=["scores"])
