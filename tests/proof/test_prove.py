"""One proof of a removal, with a cache and without, after which the model is bit for bit as before where it fails."""

from functools import partial

import pytest
import torch

import gating
from gating.errors import InputError, LayoutError, OperationError
from gating.proof import masked
from tests.support.family_models import FAMILIES
from tests.support.tiny_models import assert_same_state, state_of

ONE = torch.ones(1, 3)


@pytest.fixture
def gated():
    model = FAMILIES["llama"].build()
    gates = gating.inject_gates(model)
    with torch.no_grad():
        gates.log_alpha[::2] = -9.0
    return model, gates


@pytest.mark.parametrize("with_gates", [True, False])
def test_a_difference_with_a_cache_alone_undoes_the_removal(gated, with_gates, monkeypatch):
    model, gates = gated
    change = partial(gating.finalize, model, gates)
    if not with_gates:
        gates.remove()
        change = partial(gating.prune_neurons, model, {0: [0]}, group_size=8)
    state = state_of(model)
    # The masked model agrees with its cache, the compact one does not.
    pairs = iter([(ONE, ONE), (ONE, 2 * ONE)])
    monkeypatch.setattr(masked, "cached_outputs", lambda *_: next(pairs))
    with pytest.raises(LayoutError, match=r"masked: with a cache, .* differ by 1\.0e"):
        change()
    assert_same_state(model, state)
    assert next(pairs, None) is None


def test_a_cache_that_differs_in_the_masked_model_proves_nothing(gated, monkeypatch):
    monkeypatch.setattr(masked, "cached_outputs", lambda *_: (ONE, 2 * ONE))
    assert gating.finalize(*gated).num_heads < gated[0].config.num_attention_heads * gated[0].config.num_hidden_layers


def test_a_wrong_layout_is_an_error_of_values_and_of_the_operation():
    assert issubclass(LayoutError, InputError)
    assert issubclass(LayoutError, OperationError)
