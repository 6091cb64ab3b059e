"""Gates on the weight of a down projection, in place of its features."""

import copy
import pickle

import pytest
import torch
from torch import nn

import gating
from gating.proof.outputs import forward_outputs, max_relative_difference
from gating.proof.probe import make_probe
from tests.support.family_models import FAMILIES

UNITS = ["heads", "neurons"]


def gated(name="bert", *, seed=0, **options):
    model = FAMILIES[name].build()
    gates = gating.inject_gates(model, units=UNITS, group_size=8, **options)
    values = torch.rand(gates.log_alpha.shape, generator=torch.Generator().manual_seed(seed))
    return model, gates, values * (values > 0.4)


def gradients(model, gates, values, probe):
    model.zero_grad()
    values = values.clone().requires_grad_()
    with gates.fixed_at(values):
        loss = sum(output.square().sum() for output in tensors(model(**probe)))
    loss.backward()
    weights = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return loss.detach(), values.grad, weights


def tensors(outputs):
    return [value for value in outputs.values() if isinstance(value, torch.Tensor) and value.is_floating_point()]


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "t5"])
def test_scaled_weights_and_scaled_features_are_the_same(name, monkeypatch):
    model, gates, values = gated(name)
    # Many tokens, then the same with every weight taken to be larger than the features.
    probe = make_probe(model, batch_size=8)
    by_weight = gradients(model, gates, values, probe)
    monkeypatch.setattr(
        torch.Tensor, "numel", lambda self, numel=torch.Tensor.numel: 0 if self.dim() == 3 else numel(self)
    )
    by_features = gradients(model, gates, values, probe)
    assert max_relative_difference([by_weight[0]], [by_features[0]]) < 1e-5
    assert max_relative_difference([by_weight[1]], [by_features[1]]) < 1e-4
    assert by_weight[2].keys() == by_features[2].keys()
    # Some gradients are zero but for rounding, such as those of the biases of keys.
    largest = max(float(gradient.abs().max()) for gradient in by_weight[2].values())
    for key, gradient in by_weight[2].items():
        assert torch.allclose(gradient, by_features[2][key], rtol=1e-3, atol=1e-5 * largest), key


def test_classes_return_when_gates_are_removed():
    model, gates, values = gated("gpt2")
    probe, untouched = make_probe(model, batch_size=8), FAMILIES["gpt2"].build()
    twin = copy.deepcopy(model)
    with gates.fixed_at(values), twin.head_gates.fixed_at(values):
        assert max_relative_difference(forward_outputs(model, probe), forward_outputs(twin, probe)) == 0
    twin.head_gates.remove()
    gates.remove()
    for other in (model, twin):
        assert [type(m) for m in other.modules()] == [type(m) for m in untouched.modules()]
        assert max_relative_difference(forward_outputs(untouched, probe), forward_outputs(other, probe)) == 0
    pickle.loads(pickle.dumps(model))


def test_frozen_weights_stay_and_features_are_scaled():
    model = FAMILIES["bert"].build().requires_grad_(False)
    gates = gating.inject_gates(model, units="neurons", group_size=8)
    assert {type(block.output_projection) for block in gates.blocks()} == {nn.Linear}
    gates.train()
    model(**make_probe(model, batch_size=8)).logits.sum().backward()
    assert gates.log_alpha.grad.abs().sum() > 0
    assert all(parameter.grad is None for name, parameter in model.named_parameters() if "head_gates" not in name)
