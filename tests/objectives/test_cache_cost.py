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


def test_a_search_for_a_smaller_cache_ends_at_its_share():
    model = FAMILIES["llama"].build()
    gates = gating.inject_gates(model)
    search = gating.Search(gates, gating.ExactBudget(keep=0.5, cost="cache"))
    before = cache_bytes_per_token(model)
    search.update(1.0)
    assert search.metrics()["gates/cost/target"] == pytest.approx(0.5)
    gating.finalize(model, gates)
    assert cache_bytes_per_token(model) <= before / 2
