import pytest

from gating.lightning.steps import count_steps

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


@pytest.mark.parametrize("settings", [{"max_epochs": 0}, {"max_epochs": -1}, {"accumulate_grad_batches": 0}])
def test_nothing_to_train_is_refused(settings):
    with pytest.raises(ValueError, match="trainer"):
        count_steps({**TRAINER, **settings}, num_batches=107)
