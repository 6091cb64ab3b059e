"""Budgets of the key-value cache of decoders."""

import pytest
import torch

import gating
from gating.gates import create_gates
from gating.pruning.measure import cache_bytes_per_token
from gating.pruning.prune import remove_in_copy
from tests.support.family_models import FAMILIES


def cached(model):
    """Return the bytes of the cache for each of four tokens, of self-attention alone."""
    name, tokens = "decoder_input_ids" if model.config.is_encoder_decoder else "input_ids", torch.tensor([[5, 6, 7, 8]])
    cache = model(**{"input_ids": tokens, name: tokens}, use_cache=True).past_key_values
    layers = getattr(cache, "self_attention_cache", cache).layers
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in layers) / 4


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox", "mistral", "t5"])
@pytest.mark.parametrize("keep", [0.34, 0.67, 1.0])
@pytest.mark.parametrize("is_mixed", [True, False])
def test_a_share_of_the_cache_is_kept(family, keep, is_mixed):
    """An emptied layer caches a placeholder, of two numbers; one of T5 keeps a head whose outputs are zero."""
    model = FAMILIES[family].build()
    gates = create_gates(model, exclude=["encoder.*", "*EncDecAttention"] if family == "t5" else [])
    scores = torch.randn(len(gates.log_alpha), generator=torch.Generator().manual_seed(0))
    gates.log_alpha.data = scores if is_mixed else scores.sort(descending=True).values
    compact = remove_in_copy(model, gates, gating.ExactBudget(keep=keep, cost="cache").kept(gates))
    before, after = cache_bytes_per_token(model), cache_bytes_per_token(compact)
    assert before * (keep - 2 / len(scores)) < after <= before * keep
    if family != "mistral":  # Its window is shorter.
        assert after == cached(compact)


@pytest.mark.parametrize("options", [{}, {"uniform": True}, {"min_per_layer": 1}])
def test_a_search_for_a_smaller_cache_ends_at_its_share(options):
    model = FAMILIES["llama"].build()
    gates = gating.inject_gates(model)
    search = gating.Search(gates, gating.ExactBudget(keep=0.5, cost="cache", **options))
    before = cache_bytes_per_token(model)
    search.update(1.0)
    assert search.metrics()["gates/cost/target"] == pytest.approx(0.5)
    gating.finalize(model, gates)
    assert cache_bytes_per_token(model) <= before / 2
