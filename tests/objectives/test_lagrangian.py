"""CoFi's Lagrangian (Xia et al. 2022): lambda_1 (s - t) + lambda_2 (s - t)^2."""

import math

import pytest
import torch

import gating
from gating.training.optimizers import AdamW

SHIFT = 2 / 3 * math.log(0.1 / 1.1)


@pytest.fixture
def gates(bert):
    gates = gating.inject_gates(bert)
    with torch.no_grad():
        gates.log_alpha.copy_(torch.linspace(-3, 3, 12))
    return gates


def sparsity_by_hand():
    return 1 - sum(1 / (1 + math.exp(-(a - SHIFT))) for a in torch.linspace(-3, 3, 12).tolist()) / 12


def attached(gates, **arguments):
    objective = gating.Lagrangian(schedule=gating.BudgetSchedule(start=0.2, end=0.6), **arguments)
    objective.attach(gates)
    with torch.no_grad():
        objective.lambda_1.fill_(0.7)
        objective.lambda_2.fill_(3.0)
    return objective


def test_the_penalty_is_that_of_the_paper(gates):
    objective = attached(gates, num_heads=3)
    objective.update(gates, 0.6)
    missed = sparsity_by_hand() - 9 / 12
    assert objective.penalty(gates).item() == pytest.approx(0.7 * missed + 3.0 * missed**2, rel=1e-5)
    assert objective.target(gates) == pytest.approx(3)


def test_gates_descend_and_multipliers_ascend(gates):
    objective = attached(gates, num_heads=3)
    objective.update(gates, 1.0)
    objective.penalty(gates).backward()
    missed = sparsity_by_hand() - 9 / 12
    assert objective.lambda_1.grad.item() == pytest.approx(missed, rel=1e-5)
    assert objective.lambda_2.grad.item() == pytest.approx(missed**2, rel=1e-5)
    # d penalty / d log_alpha = (lambda_1 + 2 lambda_2 (s - t)) * -p (1 - p) / n
    p = torch.sigmoid(torch.linspace(-3, 3, 12) - SHIFT)
    torch.testing.assert_close(gates.log_alpha.grad, (0.7 + 6 * missed) * -p * (1 - p) / 12)
    before = objective.lambda_1.item(), objective.lambda_2.item()
    AdamW(multiplier_lr=0.01).build(gates, gates=gates, objective=objective).step()
    # Too few heads are closed: the price of open ones, -lambda_1, rises; lambda_2 only ever grows.
    assert missed < 0
    assert objective.lambda_1.item() == pytest.approx(before[0] - 0.01, abs=1e-4)
    assert objective.lambda_2.item() == pytest.approx(before[1] + 0.01, abs=1e-4)


def test_the_target_rises_linearly_after_the_start(gates):
    objective = attached(gates, num_heads=3)
    seen = []
    for progress in (0.0, 0.2, 0.4, 0.6, 1.0):
        objective.update(gates, progress)
        seen.append(objective.target(gates))
    assert seen == pytest.approx([0.98 * 12, 0.98 * 12, (0.98 * 12 + 3) / 2, 3, 3])


def test_nothing_is_charged_before_the_start(gates):
    objective = attached(gates, num_heads=3)
    objective.update(gates, 0.19)
    penalty = objective.penalty(gates)
    assert penalty.item() == 0
    penalty.backward()
    # Zero, but there: distributed training waits for the gradient of every parameter.
    assert [p.grad.item() for p in objective.parameters()] == [0, 0]
    assert gates.log_alpha.grad.abs().sum() == 0


def test_multipliers_start_at_zero_and_hold_the_target():
    """A problem with nothing but the penalty: the count goes where the target is."""
    torch.manual_seed(0)
    from tests.support.family_models import FAMILIES

    gates = gating.inject_gates(FAMILIES["llama"].build())
    objective = gating.Lagrangian(num_heads=6, schedule=gating.BudgetSchedule(start=0.0, end=0.5))
    objective.attach(gates)
    assert [p.item() for p in objective.parameters()] == [0, 0]
    optimizer = AdamW(gate_lr=0.05, multiplier_lr=0.05).build(gates, gates=gates, objective=objective)
    for step in range(400):
        objective.update(gates, step / 400)
        optimizer.zero_grad()
        objective.penalty(gates).backward()
        optimizer.step()
    assert gates.expected_open().item() == pytest.approx(6, abs=1.0)


def test_penalty_is_in_full_precision_under_autocast(gates):
    objective = attached(gates, num_heads=3)
    objective.update(gates, 1.0)
    expected = objective.penalty(gates)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(objective.penalty(gates), expected)
