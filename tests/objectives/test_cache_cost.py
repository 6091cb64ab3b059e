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


def cached(model):
    """Return the bytes that each further token takes in a cache, of self-attention alone."""
    sizes = []
    name = "decoder_input_ids" if model.config.is_encoder_decoder else "input_ids"
    for length in (5, 9):
        tokens = torch.arange(3, 3 + length).unsqueeze(0)
        with torch.no_grad():
            cache = model(**{"input_ids": tokens[:, :5], name: tokens}, use_cache=True).past_key_values
        layers = getattr(cache, "self_attention_cache", cache).layers
        sizes.append(sum(layer.keys.nbytes + layer.values.nbytes for layer in layers))
    return (sizes[1] - sizes[0]) / 4


@pytest.mark.parametrize("family", ["gpt2", "llama", "t5"])
@pytest.mark.parametrize("keep", [0.34, 0.5, 0.67, 1.0])
def test_the_cache_of_emptied_layers_counts(family, keep):
    """An emptied layer caches a placeholder; one of T5 keeps a head whose outputs are zero."""
    model = FAMILIES[family].build()
    gates = create_gates(model, exclude=["encoder.*", "*EncDecAttention"] if family == "t5" else [])
    # All gates of the last layers rank below those of the first.
    gates.log_alpha.data = -torch.arange(float(len(gates.log_alpha)))
    compact = remove_in_copy(model, gates, gating.ExactBudget(keep=keep, cost="cache").kept(gates))
    assert cache_bytes_per_token(compact) == cached(compact) <= keep * cached(model)


def test_a_search_for_a_smaller_cache_ends_at_its_share():
    model = FAMILIES["llama"].build()
    gates = gating.inject_gates(model)
    search = gating.Search(gates, gating.ExactBudget(keep=0.5, cost="cache"))
    before = cache_bytes_per_token(model)
    search.update(1.0)
    assert search.metrics()["gates/cost/target"] == pytest.approx(0.5)
    gating.finalize(model, gates)
    assert cache_bytes_per_token(model) <= before / 2
