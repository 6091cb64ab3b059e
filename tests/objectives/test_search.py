"""The search, as the Lightning module, the Trainer and loops of users drive it, and its end when heads stay."""

import copy

import pytest
import torch
from transformers import BertForSequenceClassification

import gating
from gating.objectives.search import Convergence
from tests.support.search import RIVALS, build_bert_on_meta
from tests.support.tiers import first_of

BATCH = {"input_ids": torch.arange(5, 17).view(2, 6), "labels": torch.tensor([0, 1])}
STEPS = 12


def make_model() -> BertForSequenceClassification:
    torch.manual_seed(0)
    return BertForSequenceClassification(build_bert_on_meta().config).train()


class Loop:
    """A loop of a user, which may stop and be resumed."""

    def __init__(self, objective, **options):
        self.model = make_model()
        self.gates = gating.inject_gates(self.model)
        self.search = gating.Search(self.gates, objective, **options)
        groups = gating.parameter_groups(self.model, lr=1e-3, gates=self.gates, objective=objective)
        self.optimizer = torch.optim.AdamW(groups)

    def run(self, first=0, last=STEPS):
        for step in range(first, last):
            torch.manual_seed(step)
            self.search.update(step / STEPS)
            self.search.add_penalty(self.model(**BATCH).loss).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
        return self

    def weights(self):
        return {**self.model.state_dict(), **self.search.objective.state_dict()}


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


@pytest.mark.parametrize("name", first_of(RIVALS, every=4))
def test_a_search_equals_the_methods_of_its_objective(name):
    searched = Loop(RIVALS[name](num_heads=5)).run()
    model, objective = make_model(), RIVALS[name](num_heads=5)
    gates = gating.inject_gates(model)
    objective.attach(gates)
    optimizer = torch.optim.AdamW(gating.parameter_groups(model, lr=1e-3, gates=gates, objective=objective))
    for step in range(STEPS):
        torch.manual_seed(step)
        objective.update(gates, step / STEPS)
        loss = model(**BATCH).loss
        if hasattr(objective, "observe"):
            objective.observe(loss.detach())
        (loss + objective.penalty(gates)).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert_same(searched.weights(), {**model.state_dict(), **objective.state_dict()})
    objective.update(gates, 1.0)
    assert torch.equal(searched.search.kept(), objective.kept(gates))


def assert_resumed(whole, half, resumed):
    """Load the state of a loop of 7 steps into another one, and check that it ends as the uninterrupted loop."""
    parts = [copy.deepcopy(one.state_dict()) for one in (half.model, half.optimizer, half.search)]
    for one, state in zip((resumed.model, resumed.optimizer, resumed.search), parts, strict=True):
        one.load_state_dict(state)
    resumed.run(7)
    assert_same(whole.weights(), resumed.weights())
    assert torch.equal(whole.search.kept(), resumed.search.kept())


@pytest.mark.parametrize("name", RIVALS)
def test_a_resumed_search_equals_an_uninterrupted_one(name):
    def make():
        return Loop(RIVALS[name](num_heads=5), convergence=gating.Convergence(patience=2, max_undecided=1.0))

    whole, half, resumed = make().run(), make().run(0, 7), make()
    assert_resumed(whole, half, resumed)


def test_a_resumed_search_has_the_budget_that_was_measured_before():
    def make(keep):
        objective = gating.ExactBudget()
        objective.take_measured({"keep": keep, "cost": {"heads": 1.0}})
        return Loop(objective)

    whole, half, resumed = make(0.448).run(), make(0.448).run(0, 7), make(0.65)
    assert_resumed(whole, half, resumed)


def test_a_search_that_begins_again_chooses_as_a_new_one():
    loop = Loop(gating.ExactBudget(num_heads=5)).run()
    loop.search.begin()
    assert (loop.search.reason, loop.gates.num_open()) == (None, 12)


class Counting(gating.Convergence):
    """A criterion that is fulfilled at the second check."""

    num_checks = 0

    def update(self, gates, kept=None):
        self.num_checks += 1
        return "they rest" if self.num_checks == 2 else None


def test_convergence_ends_a_search_at_its_later_steps_alone():
    convergence = Counting()
    search = Loop(gating.ExactBudget(num_heads=5), convergence=convergence).search
    for step in (1, 50, 66):
        assert search.check_end(step, 100) is None
    assert convergence.num_checks == 0
    assert search.check_end(70, 100, is_due=False) is None
    assert search.check_end(71, 100) is None
    # Another batch of the same step.
    assert search.check_end(71, 100) is None
    assert convergence.num_checks == 1
    assert search.check_end(72, 100) == search.reason == "they rest"


def test_the_last_step_ends_a_search():
    search = Loop(gating.ExactBudget(num_heads=5)).search
    assert search.check_end(99, 100) is None
    assert search.check_end(100, 100, is_due=False) == "all its steps were taken"


def test_the_end_is_in_the_state_with_modules_or_without():
    search, other = (Loop(gating.ExactBudget(num_heads=5)).search for _ in range(2))
    search.check_end(100, 100)
    assert not {"gates", "objective"} & search.state_dict(modules=False).keys()
    other.load_state_dict(search.state_dict(modules=False))
    assert other.reason == "all its steps were taken"


def test_metrics_have_the_penalty_after_a_step_and_may_count_kept_gates():
    loop = Loop(gating.FixedPrice(price=2.0, start=0.0))
    assert "gates/penalty" not in loop.search.metrics()
    loop.run(0, 1)
    assert loop.search.metrics()["gates/penalty"] == pytest.approx(1.96, abs=0.02)
    kept = torch.zeros(12, dtype=torch.bool)
    kept[:3] = True
    assert (loop.search.metrics(kept=kept)["gates/open"], loop.search.metrics()["gates/open"]) == (3, 12)
    # At the end there is no batch, also where another process took the last step.
    loop.search.update(1.0)
    assert "gates/penalty" not in loop.search.metrics()


class FirstHead(gating.Objective):
    """An objective of a user that tells the gates nothing."""

    def attach(self, gates):
        pass

    def update(self, gates, progress):
        pass

    def kept(self, gates):
        return torch.arange(12) == 0


def test_the_objective_of_a_user_chooses_without_being_given_again():
    loop = Loop(FirstHead())
    report = gating.finalize(loop.model, loop.gates)
    assert [len(heads) for heads in report.kept_heads.values()] == [1, 0, 0]


@pytest.fixture
def gates(bert):
    gates = gating.inject_gates(bert)
    set_open(gates, range(4))
    return gates


def set_open(gates, indices, undecided=()):
    with torch.no_grad():
        gates.log_alpha.fill_(-8.0)
        gates.log_alpha[list(indices)] = 8.0
        gates.log_alpha[list(undecided)] = 0.0


def test_search_ends_when_the_same_heads_stay(gates):
    convergence = Convergence(patience=3)
    assert [convergence.update(gates) for _ in range(3)] == [None] * 3
    assert convergence.update(gates) == (
        "the choice of 4 heads did not change at 3 checks in a row, and 0% of the gates are undecided"
    )


def test_another_choice_starts_the_count_again(gates):
    convergence = Convergence(patience=2)
    convergence.update(gates)
    convergence.update(gates)
    set_open(gates, range(1, 5))
    assert convergence.update(gates) is None
    assert convergence.update(gates) is None
    assert convergence.update(gates) is not None


def test_undecided_gates_delay_the_end(gates):
    set_open(gates, range(4), undecided=[3])
    convergence = Convergence(patience=1, max_undecided=0.05)
    assert [convergence.update(gates) for _ in range(3)] == [None] * 3
    assert Convergence(patience=1, max_undecided=0.1).update(gates) is None  # the first check
    convergence = Convergence(patience=1, max_undecided=0.1)
    convergence.update(gates)
    assert "8% of the gates are undecided" in convergence.update(gates)


def test_a_search_above_its_budget_continues(gates):
    objective = gating.ExactBudget(num_heads=2)
    kept = objective.kept(gates)
    convergence = Convergence(patience=1)
    assert [convergence.update(gates, kept) for _ in range(3)] == [None] * 3
    set_open(gates, kept.nonzero().flatten().tolist())
    assert "choice of 2 heads" in convergence.update(gates, objective.kept(gates))


def test_heads_are_counted_not_gates():
    from tests.support.family_models import FAMILIES

    gates = gating.inject_gates(FAMILIES["llama"].build())
    convergence = Convergence(patience=1)
    convergence.update(gates)
    assert "choice of 24 heads" in convergence.update(gates)


def test_a_resumed_count_continues(gates):
    first = Convergence(patience=2)
    first.update(gates)
    first.update(gates)
    second = Convergence(patience=2)
    second.load_state_dict(first.state_dict())
    assert second.update(gates) == first.update(gates) is not None


def test_the_rest_of_a_budget_of_cost_may_leave_a_gate_open(bert):
    gates = gating.inject_gates(bert, units=("heads", "neurons"), group_size=20)
    with torch.no_grad():
        gates.log_alpha.copy_(torch.tensor([9.0, -9.0, -9.0]).repeat(7))
    kept = gates.values() > 0
    kept[0] = False
    convergence = Convergence(patience=1)
    assert convergence.update(gates, kept) is None
    assert convergence.update(gates, kept).startswith(
        "the choice of 3 heads and 60 neurons did not change at 1 check in a row"
    )
    kept[3] = False
    assert convergence.update(gates, kept) is None
    assert convergence.update(gates, kept) is None
