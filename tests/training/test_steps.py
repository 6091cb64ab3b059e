"""Numbers of steps and of evaluations."""

import pytest

from gating.training.evaluation import count_evaluated, count_steps

TRAINER = {"max_epochs": 4, "max_steps": -1, "limit_train_batches": 1.0, "accumulate_grad_batches": 1}


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({}, 428),
        ({"max_steps": 12}, 12),
        ({"limit_train_batches": 3}, 12),
        ({"limit_train_batches": 0.5}, 4 * 53),
        ({"accumulate_grad_batches": 2}, 4 * 54),
        ({"max_epochs": 0.5}, 53),
    ],
)
def test_steps_follow_the_settings(settings, steps):
    assert count_steps({**TRAINER, **settings}, num_batches=107) == steps


@pytest.mark.parametrize(
    ("limits", "validation", "test"),
    [
        ({}, 8, 8),
        ({"limit_val_batches": 2, "limit_test_batches": None}, 2, 8),
        ({"limit_val_batches": 1.0, "limit_test_batches": 0.5}, 8, 4),
        ({"limit_val_batches": 100, "limit_test_batches": 1}, 8, 1),
        ({"limit_val_batches": 0, "limit_test_batches": 0.0}, 0, 0),
    ],
)
def test_evaluations_follow_the_limits_of_their_split(limits, validation, test):
    assert count_evaluated(limits, "validation", num_batches=8) == validation
    assert count_evaluated(limits, "test", num_batches=8) == test
