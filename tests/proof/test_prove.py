"""One proof of a removal, with a cache and without, after which the model is bit for bit as before where it fails."""

from functools import partial

import pytest
import torch

import gating
from gating.errors import InputError, LayoutError, OperationError
from gating.families import registry
from gating.proof import prove
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
    monkeypatch.setattr(prove, "cached_outputs", lambda *_: next(pairs))
    with pytest.raises(LayoutError, match=r"1\.0e"):
        change()
    assert_same_state(model, state)
    assert next(pairs, None) is None


def test_a_cache_that_differs_in_the_masked_model_proves_nothing(gated, monkeypatch):
    monkeypatch.setattr(prove, "cached_outputs", lambda *_: (ONE, 2 * ONE))
    assert gating.finalize(*gated).num_heads < gated[0].config.num_attention_heads * gated[0].config.num_hidden_layers


def test_a_wrong_layout_is_an_error_of_values_and_of_the_operation():
    assert issubclass(LayoutError, InputError)
    assert issubclass(LayoutError, OperationError)


def _out_of_memory(*_args, **_options):
    raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize("where", ["gradients", "cache", "own batch"])
def test_a_lack_of_memory_reaches_the_caller(gated, where, monkeypatch):
    model, gates = gated
    state, probe = state_of(model), {"input_ids": torch.tensor([[5, 6, 7]])}
    if where == "gradients":
        monkeypatch.setattr(torch.autograd, "grad", _out_of_memory)
    elif where == "cache":
        monkeypatch.setattr(prove, "cached_outputs", _out_of_memory)
    else:
        # The outputs do not depend on this layer, so that the model's own batch is tried, too.
        model.model.layers[0].self_attn.o_proj.weight.data.zero_()
        state, run = state_of(model), prove.run_probe
        monkeypatch.setattr(prove, "run_probe", lambda model, probe: (run if probe else _out_of_memory)(model, probe))
    with pytest.raises(torch.OutOfMemoryError):
        gating.finalize(model, gates, probe=probe)
    assert_same_state(model, state)


@pytest.mark.parametrize("change", [gating.prune_layers, partial(gating.find_feed_forward_blocks, discover=True)])
def test_a_lack_of_memory_is_no_wrong_layout(bert, change, monkeypatch):
    monkeypatch.setattr(registry, "_FEED_FORWARD", ())
    monkeypatch.setattr(prove.ExpectedOutputs, "difference", _out_of_memory)
    with pytest.raises(torch.OutOfMemoryError):
        change(bert, *([[1]] if change is gating.prune_layers else []))
