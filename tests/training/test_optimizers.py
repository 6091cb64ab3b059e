import pytest
import torch
from torch import nn

from gating.training.optimizers import AdamW, LinearSchedule


def parameters(count: int) -> list[nn.Parameter]:
    return [nn.Parameter(torch.zeros(2)) for _ in range(count)]


def test_three_kinds_of_parameters_have_groups_of_their_own():
    optimizer = AdamW(lr=1e-3, gate_lr=0.2, multiplier_lr=0.3, weight_decay=0.5).build(
        parameters(3), parameters(1), parameters(2)
    )
    groups = {group["name"]: group for group in optimizer.param_groups}
    assert [(g["lr"], g["weight_decay"], g["maximize"]) for g in groups.values()] == [
        (1e-3, 0.5, False),
        (0.2, 0.0, False),
        (0.3, 0.0, True),
    ]


def test_multipliers_ascend():
    multiplier = parameters(1)
    optimizer = AdamW(multiplier_lr=0.1).build(parameters(1), [], multiplier)
    multiplier[0].grad = torch.ones(2)
    optimizer.step()
    assert (multiplier[0] > 0).all()


def test_search_and_recovery_follow_one_line():
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
