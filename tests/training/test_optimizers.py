"""Parameter groups and learning rates."""

import math

import pytest
import torch
from torch import nn

from gating.training.optimizers import AdamW, LinearSchedule, WarmupSchedule


def parameters(count: int) -> list[nn.Parameter]:
    return [nn.Parameter(torch.zeros(2)) for _ in range(count)]


def test_weights_gates_and_multipliers_have_separate_groups():
    optimizer = AdamW(lr=1e-3, gate_lr=0.2, multiplier_lr=0.3, weight_decay=0.5).build(
        parameters(3), parameters(1), parameters(2)
    )
    groups = {group["name"]: group for group in optimizer.param_groups}
    assert [(g["lr"], g["weight_decay"], g["maximize"]) for g in groups.values()] == [
        (1e-3, 0.5, False),
        (0.2, 0.0, False),
        (0.3, 0.0, True),
    ]


@pytest.mark.parametrize(
    ("given", "units", "expected"),
    [(None, ["heads"], 0.1), (None, ["heads", "neurons"], 0.2), (None, ["neurons"], 0.2), (0.05, ["neurons"], 0.05)],
)
def test_gates_of_neurons_learn_twice_as_fast_by_default(given, units, expected):
    optimizer = AdamW(gate_lr=given).build(parameters(1), parameters(1), [], units=units)
    assert optimizer.param_groups[1]["lr"] == expected


def test_multipliers_ascend():
    multiplier = parameters(1)
    optimizer = AdamW(multiplier_lr=0.1).build(parameters(1), [], multiplier)
    multiplier[0].grad = torch.ones(2)
    optimizer.step()
    assert (multiplier[0] > 0).all()


def test_search_and_recovery_share_one_schedule():
    def rates(first_step: int, steps: int) -> list[float]:
        optimizer = AdamW(lr=1.0).build(parameters(1), parameters(1), [])
        schedule = LinearSchedule(warmup=0.1).build(optimizer, first_step=first_step, total_steps=20)
        seen = []
        for _ in range(steps):
            seen.append(optimizer.param_groups[0]["lr"])
            assert optimizer.param_groups[1]["lr"] == 0.1  # gates keep theirs
            optimizer.step()
            schedule.step()
        return seen

    whole = rates(0, 20)
    assert rates(0, 15) + rates(15, 5) == pytest.approx(whole)
    assert whole[0] == pytest.approx(0.5)
    assert max(whole) == pytest.approx(1.0)
    assert whole[-1] == pytest.approx(1 / 18)


@pytest.mark.parametrize("warmup", [0.0, 0.06, 0.1, 0.5, 0.99, 1.0])
@pytest.mark.parametrize("total_steps", [1, 2, 7, 20, 137])
def test_linear_rates_are_the_formula_to_the_bit(warmup, total_steps):
    optimizer = AdamW(lr=1.0).build(parameters(1), [], [])
    schedule = LinearSchedule(warmup=warmup).build(optimizer, first_step=0, total_steps=total_steps)
    warmup_steps = max(1, round(warmup * total_steps))
    for step in range(total_steps):
        decay = (total_steps - step) / max(1, total_steps - warmup_steps)
        assert schedule.lr_lambdas[0](step) == max(0.0, min((step + 1) / warmup_steps, decay))


def test_other_shapes_are_those_of_transformers():
    def rates(shape: str) -> list[float]:
        optimizer = AdamW(lr=1.0).build(parameters(1), parameters(1), [])
        schedule = WarmupSchedule(warmup=0.1, shape=shape).build(optimizer, first_step=0, total_steps=20)
        assert [schedule.lr_lambdas[1](step) for step in range(20)] == [1.0] * 20
        return [schedule.lr_lambdas[0](step) for step in range(20)]

    assert rates("constant_with_warmup") == [0.5] + [1.0] * 19
    cosine = [0.5 * (1 + math.cos(math.pi * (step - 2) / 18)) for step in range(2, 20)]
    assert rates("cosine") == pytest.approx([0.5, 1.0, *cosine])
    assert rates("inverse_sqrt")[8] == pytest.approx(0.5)
