"""Warnings about gates that do not separate the heads to keep from the others."""

import warnings

import pytest
import torch

import gating
from tests.support.tiny_models import batch_for


def train_gates(model, *, lr, updates, steps=60):
    """Train the gates alone; they separate only with a sufficient learning rate and with updates."""
    gates, objective = gating.inject_gates(model), gating.ExactBudget(num_heads=4)
    objective.attach(gates)
    batch, labels = batch_for(model), torch.tensor([0, 1])
    optimizer = torch.optim.Adam([gates.log_alpha], lr=lr)
    torch.manual_seed(0)
    for step in range(steps):
        if updates:
            objective.update(gates, step / steps)
        loss = torch.nn.functional.cross_entropy(model.train()(**batch).logits, labels)
        (loss + objective.penalty(gates)).backward()
        optimizer.step()
        optimizer.zero_grad()
    if updates:
        objective.update(gates, 1.0)
    return gates


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"lr": 0.3, "updates": False},
            r"the gates to keep \(4\) are at .* those to remove \(8\) at .* 12 of all are open",
        ),
        ({"lr": 2e-5, "updates": True}, "nearly arbitrary"),
    ],
)
def test_untrained_gates_give_a_warning(bert, options, message):
    gates = train_gates(bert, **options)
    with pytest.warns(UserWarning, match=message):
        assert gating.finalize(bert, gates, num_heads=4).num_heads == 4


def test_trained_gates_give_no_warning(bert):
    gates = train_gates(bert, lr=0.5, updates=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert gating.finalize(bert, gates, num_heads=4).num_heads == 4


@pytest.mark.parametrize("locations", [[5] * 8 + [-5] * 4, [5] * 7 + [-5] * 5, [3] * 4 + [2.9] * 4 + [-5] * 4])
def test_a_choice_among_equally_open_gates_gives_a_warning(bert, gates, locations):
    gates.log_alpha.data = torch.tensor(locations, dtype=torch.float32)
    with pytest.warns(UserWarning, match="nearly arbitrary"):
        gating.finalize(bert, gates, num_heads=4)


def test_few_removed_heads_give_no_warning(bert, gates):
    with torch.no_grad():
        gates.log_alpha.fill_(6.0)[3] = -1.5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert gating.finalize(bert, gates, num_heads=11).num_heads == 11
