"""Budgets of the key-value cache of decoders."""

import pytest
import torch

import gating
from gating.gates import create_gates
from gating.pruning.measure import cache_bytes_per_token
from gating.pruning.prune import remove_in_copy
from tests.support.family_models import FAMILIES

DECODERS = ["gpt2", "llama", "gpt_neox", "mistral"]


@pytest.mark.parametrize("family", DECODERS)
@pytest.mark.parametrize("keep", [0.34, 0.67])
def test_a_share_of_the_cache_is_kept(family, keep):
    model = FAMILIES[family].build()
    gates = create_gates(model)
    gates.log_alpha.data = torch.randn(len(gates.log_alpha), generator=torch.Generator().manual_seed(0))
    kept = gating.ExactBudget(keep=keep, cost="cache").kept(gates)
    compact = remove_in_copy(model, gates, kept)
    before, after = cache_bytes_per_token(model), cache_bytes_per_token(compact)
    gate = before / len(gates.log_alpha)
    assert before * keep - gate < after <= before * keep


def test_units_and_blocks_without_a_cache_are_refused():
    model = FAMILIES["llama"].build()
    for options, words in (
        ({"units": ["heads", "neurons"]}, "its neurons keep no keys and values"),
        ({"group_queries": False}, "its heads keep no keys and values of their own"),
    ):
        with pytest.raises(gating.errors.InputError, match=rf"cost=cache has no cost for .*{words}"):
            gating.ExactBudget(keep=0.5, cost="cache").check(create_gates(model, **options))
    with pytest.raises(gating.errors.InputError, match=r"cost=cache has no cost for encoder\.layer\.0"):
        gating.ExactBudget(keep=0.5, cost="cache").check(create_gates(FAMILIES["bert"].build()))


def test_a_search_for_a_smaller_cache_ends_at_its_share():
    model = FAMILIES["llama"].build()
    gates = gating.inject_gates(model)
    search = gating.Search(gates, gating.ExactBudget(keep=0.5, cost="cache"))
    before = cache_bytes_per_token(model)
    search.update(1.0)
    assert search.metrics()["gates/cost/target"] == pytest.approx(0.5)
    gating.finalize(model, gates)
    assert cache_bytes_per_token(model) <= before / 2
