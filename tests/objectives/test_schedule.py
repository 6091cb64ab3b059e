"""The start of a descent: a share of the search, or the fall of the training loss."""

import pytest
import torch

import gating
from gating.objectives import BudgetSchedule, ExactBudget
from gating.objectives.schedule import DescentStart

STEPS = 100


def begun_at(losses, *, end=0.67):
    """Return the step of 100 at which the descent begins; the loss of a batch is seen after its step."""
    start, schedule = DescentStart(), BudgetSchedule(end=end)
    for step, loss in enumerate(losses):
        found = start.update(schedule, step / STEPS)
        if found is not None:
            assert found == step / STEPS
            return step
        start.observe(torch.tensor(loss))
    return None


def learning(fall, *, noise=0.1):
    """Return losses with noise of about this standard deviation that are 1 before a step, and 0.5 from it on."""
    draws = torch.randn(STEPS, generator=torch.Generator().manual_seed(0)) * noise
    return [(1.0 if step < fall else 0.5) + draws[step].item() for step in range(STEPS)]


def test_an_explicit_start_is_a_fixed_share():
    schedule = BudgetSchedule(start=0.2, end=0.8)
    assert schedule.earliest == schedule.latest == 0.2
    assert schedule.target(0.5, total=72, budget=12) == pytest.approx(42)
    assert schedule.target(0.5, total=72, budget=12) == schedule.target(0.5, total=72, budget=12, start=0.2)


def test_the_latest_start_leaves_half_of_the_time_to_the_end():
    schedule = BudgetSchedule()
    assert (schedule.earliest, schedule.latest) == (0.13, pytest.approx(0.4))
    assert BudgetSchedule(end=0.13).latest == 0.13
    assert schedule.target(0.535, total=72, budget=12, start=0.4) == pytest.approx(42)
    assert schedule.target(0.4, total=72, budget=12, start=0.4) == 72
    assert schedule.target(0.67, total=72, budget=12, start=0.4) == 12


@pytest.mark.parametrize("fall", [20, 30])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_a_descent_begins_soon_after_the_loss_falls(fall, scale):
    step = begun_at([scale * loss for loss in learning(fall)], end=1.0)
    assert fall < step <= fall + 20


def test_a_descent_does_not_begin_before_the_earliest_share():
    losses = [1.0] * 5 + [0.1 * (step % 3) for step in range(395)]
    start = DescentStart()
    for loss in losses[:50]:
        start.observe(torch.tensor(loss))
    assert start.update(BudgetSchedule(), 0.129) is None
    assert start.update(BudgetSchedule(), 0.131) == 0.131


@pytest.mark.parametrize(
    "losses", [learning(STEPS), learning(STEPS, noise=0.0), [0.5 + 0.01 * s for s in range(STEPS)]]
)
def test_a_descent_begins_at_the_latest_share_where_the_loss_does_not_fall(losses):
    assert begun_at(losses) == 40


def test_the_start_does_not_change_after_it():
    start = DescentStart()
    start.observe(torch.tensor(1.0))
    assert start.update(BudgetSchedule(), 0.45) == start.update(BudgetSchedule(), 0.5) == 0.45


def test_without_losses_the_descent_begins_at_the_earliest_share():
    assert DescentStart().update(BudgetSchedule(), 0.12) is None
    assert DescentStart().update(BudgetSchedule(), 0.3) == 0.13


@pytest.mark.parametrize("stop", [5, 17, 33, 45])
def test_a_restored_start_is_the_uninterrupted_one(stop):
    losses, schedule = learning(25), BudgetSchedule(end=1.0)
    whole = DescentStart()
    states, starts = [], []
    for step, loss in enumerate(losses):
        if step == stop:
            states.append(whole.state_dict())
            restored = DescentStart()
            restored.load_state_dict({name: tensor.clone() for name, tensor in whole.state_dict().items()})
        starts.append(whole.update(schedule, step / STEPS))
        whole.observe(torch.tensor(loss))
    for step in range(stop, STEPS):
        assert restored.update(schedule, step / STEPS) == starts[step]
        restored.observe(torch.tensor(losses[step]))


def test_processes_with_other_batches_begin_at_the_same_step(monkeypatch):
    one, other = DescentStart(), DescentStart()
    for step in range(40):
        one.observe(torch.tensor(1.0 if step < 20 else 0.4))
        other.observe(torch.tensor(1.0 + 0.01 * (step % 2)))
    alone = [start.update(BudgetSchedule(), 0.2) for start in (one, other)]
    assert alone == [0.2, None]
    total = one.losses + other.losses
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    monkeypatch.setattr("torch.distributed.all_reduce", lambda losses: losses.copy_(total))
    one.begun_at = None
    assert one.update(BudgetSchedule(), 0.21) == other.update(BudgetSchedule(), 0.21) == 0.21


def test_gates_rest_fully_open_until_the_loss_has_fallen(bert):
    gates, objective = gating.inject_gates(bert.train()), ExactBudget(num_heads=3)
    objective.attach(gates)
    objective.observe(torch.tensor(1.0))
    objective.update(gates, 0.3)
    values = gates.sample()
    assert torch.equal(values, torch.ones(12))
    values.sum().backward()
    assert not gates.log_alpha.grad.any()
    assert objective.target(gates) == pytest.approx(12, rel=1e-5)
    objective.update(gates, 0.4)
    assert objective.target(gates) == pytest.approx(0.98 * 12)
    objective.update(gates, 0.67)
    assert objective.target(gates) == 3


def test_gates_on_heads_and_neurons_rest_fully_open(bert):
    gates = gating.inject_gates(bert.train(), units=("heads", "neurons"), group_size=4)
    objective = ExactBudget(keep=0.5, cost="parameters")
    objective.attach(gates)
    objective.observe(torch.tensor(1.0))
    objective.update(gates, 0.3)
    assert torch.equal(gates.sample(), torch.ones_like(gates.log_alpha))


def test_an_objective_with_a_fixed_start_ignores_losses(bert):
    gates, objective = gating.inject_gates(bert), ExactBudget(num_heads=3, schedule=BudgetSchedule(start=0.13))
    objective.attach(gates)
    objective.observe(torch.tensor(1.0))
    objective.update(gates, 0.4)
    assert objective.target(gates) == pytest.approx(3 + (0.98 * 12 - 3) * 0.5)
    # There is no start to remember.
    assert not objective.state_dict()


def learned(gates, objective):
    """Let an objective observe that the loss has fallen, and gates differ."""
    for step in range(40):
        objective.observe(torch.tensor(1.0 if step < 15 else 0.1))
    objective.update(gates, 0.2)
    with torch.no_grad():
        gates.log_alpha.normal_(generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("num_heads", [3, 5, 10])
def test_gates_are_decided_from_the_end_of_a_descent_that_followed_the_loss(bert, num_heads):
    gates, objective = gating.inject_gates(bert.train()), ExactBudget(num_heads=num_heads)
    objective.attach(gates)
    learned(gates, objective)
    before = gates.log_alpha.clone()
    objective.update(gates, 0.66)
    assert ((gates.values() > 0.05) & (gates.values() < 0.95)).any()
    for progress in (0.67, 1.0):
        objective.update(gates, progress)
        assert torch.equal(gates.sample() == 1, objective.kept(gates))
        assert gates.num_open() == num_heads
        assert torch.equal(gates.log_alpha, before)


def test_decided_gates_keep_the_size_of_gradients(bert):
    gates, objective = gating.inject_gates(bert.train()), ExactBudget(num_heads=5)
    objective.attach(gates)
    learned(gates, objective)
    torch.nn.init.zeros_(gates.log_alpha)
    norms = []
    for progress in (0.66999, 0.67):
        objective.update(gates, progress)
        torch.manual_seed(0)
        (gates.sample() * torch.arange(12)).sum().backward()
        norms.append(gates.log_alpha.grad.norm().item())
        gates.log_alpha.grad = None
    assert norms[1] == pytest.approx(norms[0], rel=0.01)


@pytest.mark.parametrize("losses", [[], [1.0] * 40, [1.0] * 5])
def test_gates_are_not_decided_where_the_loss_did_not_fall(bert, losses):
    gates, objective = gating.inject_gates(bert.train()), ExactBudget(num_heads=5)
    objective.attach(gates)
    for loss in losses:
        objective.observe(torch.tensor(loss))
    for progress in (0.2, 0.5, 1.0):
        objective.update(gates, progress)
    assert ((gates.values() > 0.05) & (gates.values() < 0.95)).all()


def test_heads_that_stay_for_their_layer_are_kept_though_decided_gates_close_them(bert):
    gates, objective = gating.inject_gates(bert.train()), ExactBudget(num_heads=3, min_per_layer=1)
    objective.attach(gates)
    learned(gates, objective)
    with torch.no_grad():
        gates.log_alpha.copy_(torch.arange(12.0))
    objective.update(gates, 1.0)
    report = gating.finalize(bert, gates, kept=objective.kept(gates))
    assert [len(heads) for heads in report.kept_heads.values()] == [1, 1, 1]
