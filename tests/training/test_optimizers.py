"""Parameter groups, classes of optimizers and learning rates."""

import copy
import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from transformers.trainer_utils import SchedulerType

import gating
from gating.errors import InputError
from gating.training.optimizers import AdamW, AnyOptimizer, CombinedOptimizer, WarmupSchedule
from tests.support.tiny_models import build


def rates_of(optimizer: torch.optim.Optimizer) -> dict[str, tuple[float, float, bool]]:
    return {g["name"]: (g["lr"], g["weight_decay"], g.get("maximize", False)) for g in optimizer.param_groups}


@pytest.fixture
def model():
    return build("bert")


def with_multipliers(model):
    gates, objective = gating.inject_gates(model), gating.objectives.Lagrangian(num_heads=2)
    objective.attach(gates)
    return gates, objective


@pytest.mark.parametrize(
    "settings",
    [
        AdamW(lr=1e-3, gate_lr=0.2, multiplier_lr=0.3, weight_decay=0.5),
        AnyOptimizer(torch.optim.SGD, lr=1e-3, gate_lr=0.2, multiplier_lr=0.3, weight_decay=0.5),
    ],
)
def test_weights_gates_and_multipliers_have_separate_groups(settings, model):
    gates, objective = with_multipliers(model)
    optimizer = settings.build(model, gates=gates, objective=objective)
    assert rates_of(optimizer) == {
        "weights": (1e-3, 0.5, False),
        "weights_without_decay": (1e-3, 0.0, False),
        "gates": (0.2, 0.0, False),
        "multipliers": (0.3, 0.0, True),
    }
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, others = ([names[id(p)] for p in group["params"]] for group in optimizer.param_groups[:2])
    assert all(name.endswith("bias") or "LayerNorm" in name for name in others)
    assert not any(name.endswith("bias") or "LayerNorm" in name for name in decayed)
    assert len(decayed) + len(others) + 1 == len(names)


@pytest.mark.parametrize(
    ("given", "units", "expected"),
    [(None, ["heads"], 0.1), (None, ["heads", "neurons"], 0.2), (None, ["neurons"], 0.2), (0.05, ["neurons"], 0.05)],
)
def test_gates_of_neurons_learn_twice_as_fast_by_default(given, units, expected, model):
    gates = gating.inject_gates(model, units=units, group_size=4)
    assert rates_of(AdamW(gate_lr=given).build(model, gates=gates))["gates"][0] == expected


@pytest.mark.parametrize("settings", [AdamW(multiplier_lr=0.1), AnyOptimizer(torch.optim.SGD, multiplier_lr=0.1)])
def test_multipliers_ascend(settings, model):
    gates, objective = with_multipliers(model)
    optimizer = settings.build(model, gates=gates, objective=objective)
    before = [parameter.clone() for parameter in objective.parameters()]
    for parameter in objective.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert all((now > then).all() for now, then in zip(objective.parameters(), before, strict=True))


CLASSES = {
    "SGD": (torch.optim.SGD, {"momentum": 0.9}),
    "Adafactor": (torch.optim.Adafactor, {}),
    "Adagrad": (torch.optim.Adagrad, {}),  # has a state from the start
    "NAdam": (torch.optim.NAdam, {"decoupled_weight_decay": True}),
}


@pytest.mark.parametrize("name", CLASSES)
def test_a_combined_optimizer_steps_and_resumes_as_its_parts(name):
    kind, options = CLASSES[name]
    torch.manual_seed(0)
    layers = nn.ModuleDict({"weights": nn.Linear(3, 3), "gates": nn.Linear(3, 3)})

    def parts(of):
        return kind(of["weights"].parameters(), lr=0.1, **options), torch.optim.AdamW(of["gates"].parameters(), lr=0.2)

    def step(of, optimizers):
        torch.manual_seed(len(optimizers[0].state))
        of["gates"](of["weights"](torch.ones(1, 3))).sum().backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()

    apart = copy.deepcopy(layers)
    separate, together = parts(apart), CombinedOptimizer(*parts(layers))
    schedule = torch.optim.lr_scheduler.StepLR(together, 1, gamma=0.5)
    schedules = [torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5) for optimizer in separate]
    for number in range(4):
        if number == 2:  # from here on in another process
            resumed = CombinedOptimizer(*parts(layers))
            resumed.load_state_dict(copy.deepcopy(together.state_dict()))
            state, together = schedule.state_dict(), resumed
            schedule = torch.optim.lr_scheduler.StepLR(together, 1, gamma=0.5)
            schedule.load_state_dict(state)
            for group, rate in zip(together.param_groups, state["_last_lr"], strict=True):
                group["lr"] = rate
        step(layers, [together])
        step(apart, separate)
        schedule.step()
        for each in schedules:
            each.step()
    assert all(torch.equal(one, other) for one, other in zip(layers.parameters(), apart.parameters(), strict=True))
    assert len(together.state) == 4


def test_frozen_weights_leave_the_gates_to_adamw(bert):
    bert.requires_grad_(False)
    gates = gating.inject_gates(bert)
    made = AnyOptimizer(torch.optim.SGD).build(bert, gates=gates)
    assert type(made) is torch.optim.AdamW
    assert [group["name"] for group in made.param_groups] == ["gates"]


def test_a_class_trains_the_weights_alone_without_gates(model):
    assert type(AnyOptimizer(partial(torch.optim.SGD, momentum=0.9)).build(model)) is torch.optim.SGD


def two_groups() -> torch.optim.Optimizer:
    """Return an optimizer of weights with the rate 1 and of gates with the rate 0.1."""
    groups = [{"name": "weights", "params": [nn.Parameter(torch.zeros(2))], "lr": 1.0}]
    return torch.optim.AdamW([*groups, {"name": "gates", "params": [nn.Parameter(torch.zeros(2))], "lr": 0.1}])


def rates(steps: int, *, first_step: int, total_steps: int, **settings: Any) -> list[float]:
    """Return the rates of the weights in the steps of a phase."""
    optimizer = two_groups()
    schedule = WarmupSchedule(warmup=0.1, **settings).build(optimizer, first_step=first_step, total_steps=total_steps)
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        assert optimizer.param_groups[1]["lr"] == 0.1  # gates keep theirs
        optimizer.step()
        schedule.step()
    return seen


def test_the_search_has_the_rates_of_a_dense_run_and_the_recovery_begins_them_again():
    whole = rates(20, first_step=0, total_steps=20)
    assert rates(15, first_step=0, total_steps=20) == whole[:15]
    assert rates(5, first_step=15, total_steps=20) == rates(5, first_step=0, total_steps=5)
    assert whole[0] == pytest.approx(0.5)
    assert max(whole) == pytest.approx(1.0)
    assert whole[-1] == pytest.approx(1 / 18)


@pytest.mark.parametrize("warmup", [0.0, 0.06, 0.1, 0.5, 0.99, 1.0])
@pytest.mark.parametrize("total_steps", [1, 2, 7, 20, 137])
def test_linear_rates_are_the_formula_to_the_bit(warmup, total_steps):
    optimizer = two_groups()
    schedule = WarmupSchedule(warmup=warmup).build(optimizer, first_step=0, total_steps=total_steps)
    warmup_steps = max(1, round(warmup * total_steps))
    for step in range(total_steps):
        decay = (total_steps - step) / max(1, total_steps - warmup_steps)
        assert schedule.lr_lambdas[0](step) == max(0.0, min((step + 1) / warmup_steps, decay))


def test_other_shapes_are_those_of_transformers():
    def rates(shape: str, **arguments: float) -> list[float]:
        schedule = WarmupSchedule(0.1, shape, arguments).build(two_groups(), first_step=0, total_steps=20)
        assert [schedule.lr_lambdas[1](step) for step in range(20)] == [1.0] * 20
        return [schedule.lr_lambdas[0](step) for step in range(20)]

    assert rates("constant") == [1.0] * 20
    assert rates("constant_with_warmup") == [0.5] + [1.0] * 19
    cosine = [0.5 * (1 + math.cos(math.pi * (step - 2) / 18)) for step in range(2, 20)]
    assert rates("cosine") == pytest.approx([0.5, 1.0, *cosine])
    assert rates("inverse_sqrt")[8] == pytest.approx(0.5)
    assert rates("polynomial", power=2.0, lr_end=0.1)[11] == pytest.approx(0.1 + 0.9 * 0.5**2)
    assert rates("cosine_with_restarts", num_cycles=2)[11] == pytest.approx(1.0)  # begins again
    assert rates("cosine_with_min_lr", min_lr_rate=0.3)[19] > 0.3
    assert rates("warmup_stable_decay", num_decay_steps=5)[5:16] == [1.0] * 11


@pytest.mark.parametrize("shape", [kind.value for kind in SchedulerType])
def test_every_schedule_of_transformers_that_depends_on_the_step_alone_is_known(shape):
    needed = {"cosine_with_min_lr": {"min_lr": 0.1}, "cosine_warmup_with_min_lr": {"min_lr": 0.1}}
    needed["warmup_stable_decay"] = {"num_decay_steps": 2}
    if shape in ("reduce_lr_on_plateau", "greedy"):
        with pytest.raises(InputError, match="waits for the loss"):
            WarmupSchedule(shape=shape)
    else:
        WarmupSchedule(shape=shape, arguments=needed.get(shape, {}))
