"""Common properties of objectives with a budget."""

import pytest
import torch

import gating
from gating.errors import InputError
from gating.gates import create_gates
from gating.proof.probe import make_probe
from tests.support.family_models import FAMILIES
from tests.support.gated import num_kept
from tests.support.search import RIVALS, Search, build_bert_on_meta
from tests.support.tiers import first_of
from tests.support.tiny_models import build

LEARNED = ("budget", "deterministic", "gumbel", "straight_through")
STEPS = 12


@pytest.fixture(params=RIVALS)
def rival(request):
    return request.param


def search_with(objective):
    return Search(build("bert"), objective, steps=STEPS)


@pytest.mark.parametrize(("seed", "num_heads"), first_of([(0, 1), (1, 5), (2, 11), (3, 12)]))
def test_exactly_so_many_heads_stay(rival, seed, num_heads):
    torch.manual_seed(seed)
    search = search_with(RIVALS[rival](num_heads=num_heads)).run(0, STEPS)
    kept = search.kept()
    assert kept.sum() == num_kept(search.gates, search.objective) == num_heads
    report = gating.finalize(search.model, search.gates, kept=kept)
    assert report.num_heads == num_heads


@pytest.mark.parametrize(("arguments", "expected"), first_of([({"num_heads": 10}, 10), ({"keep": 0.5}, 12), ({}, 6)]))
def test_groups_of_query_heads_stay_whole(rival, arguments, expected):
    torch.manual_seed(0)
    model = FAMILIES["llama"].build()
    gates = gating.inject_gates(model)
    objective = RIVALS[rival](min_per_layer=1, **arguments)
    objective.attach(gates)
    for step in range(STEPS):
        objective.update(gates, step / STEPS)
        model.train()(**make_probe(model)).logits.square().mean().backward()
    objective.update(gates, 1.0)
    report = gating.finalize(model, gates, kept=objective.kept(gates))
    assert report.num_heads == expected
    assert min(map(len, report.kept_heads.values())) >= 1


def test_gradient_reaches_log_alpha_where_gates_are_learned(rival):
    torch.manual_seed(0)
    search = search_with(RIVALS[rival](num_heads=4))
    search.objective.update(search.gates, 0.2)
    search.model(**search.batch).loss.backward()
    gradient = search.gates.log_alpha.grad
    if rival in LEARNED:
        assert (gradient != 0).sum() >= 10
    elif rival == "lagrangian":
        # Gates that are drawn wide open have none from the task.
        search.objective.penalty(search.gates).backward()
        assert search.gates.log_alpha.grad is not None
    else:
        assert gradient is None


def test_values_are_in_full_precision_under_autocast(rival):
    search = search_with(RIVALS[rival](num_heads=4))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        search.objective.update(search.gates, 0.5)
        for values in (search.gates.sample(), search.gates.values(), search.gates.prob_open()):
            assert values.dtype == torch.float32
            assert values.shape == (12,)
        loss = search.model(**search.batch).loss + search.objective.penalty(search.gates)
    loss.backward()


def test_a_model_without_weights_tells_whether_the_budget_fits(rival):
    with torch.device("meta"):
        model = build_bert_on_meta()
    RIVALS[rival](num_heads=4).check(create_gates(model))
    assert not hasattr(model, "head_gates")
    RIVALS[rival](num_heads=4).attach(gating.inject_gates(model))
    for arguments, message in (
        ({"num_heads": 13}, "num_heads=13 cannot be kept"),
        ({"num_heads": 4, "keep": 0.5}, "either num_heads or keep"),
        ({"num_heads": 2, "min_per_layer": 1}, "2 heads are too few"),
        ({"num_heads": 4, "min_per_layer": 5}, "more than the 4 heads"),
    ):
        with torch.device("meta"):
            gates = gating.inject_gates(build_bert_on_meta())
        with pytest.raises(ValueError, match=message):
            RIVALS[rival](**arguments).attach(gates)
        with pytest.raises(InputError, match=message):
            RIVALS[rival](**arguments).check(create_gates(build_bert_on_meta()))
        assert gates.sampler is None
        assert gates.constraint is None
