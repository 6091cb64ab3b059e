"""The divergence of softmaxes, some rows at a time."""

import pytest
import torch
from torch.nn import functional

from gating.objectives import distillation
from gating.objectives.distillation import softmax_divergence

COUNTED = torch.tensor([[True, False, True], [True, True, False]])


def logits(seed, dtype=torch.float32):
    return torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("chunk", [1, 14, 2**20])
@pytest.mark.parametrize("counted", [None, COUNTED], ids=["all", "some"])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_value_and_gradient_are_those_of_torch(monkeypatch, chunk, counted, temperature):
    monkeypatch.setattr(distillation, "_CHUNKS", {"cpu": chunk})
    ours, reference = logits(0).requires_grad_(), logits(0).requires_grad_()
    taken = torch.ones(2, 3, dtype=torch.bool) if counted is None else counted
    expected = functional.kl_div(
        (reference[taken] / temperature).log_softmax(-1),
        (logits(1)[taken] / temperature).log_softmax(-1),
        reduction="sum",
        log_target=True,
    )
    found = softmax_divergence(ours, logits(1), temperature=temperature, counted=counted)
    torch.testing.assert_close(found, expected)
    (3 * found).backward()
    (3 * expected).backward()
    torch.testing.assert_close(ours.grad, reference.grad)


def test_halves_are_compared_in_single_and_have_gradients_in_half():
    ours = logits(0, torch.bfloat16).requires_grad_()
    found = softmax_divergence(ours, logits(1, torch.bfloat16))
    found.backward()
    single = ours.detach().float().requires_grad_()
    softmax_divergence(single, logits(1, torch.bfloat16).float()).backward()
    assert found.dtype == torch.float32
    assert torch.equal(ours.grad, single.grad.bfloat16())


def test_equal_logits_have_no_divergence_and_no_gradient():
    ours = logits(0).requires_grad_()
    found = softmax_divergence(ours, logits(0))
    found.backward()
    assert found == 0
    assert not ours.grad.any()
