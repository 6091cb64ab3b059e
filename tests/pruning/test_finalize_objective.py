"""Removal by an objective: its choice, with all of its settings, or an error."""

import pytest
import torch

import gating
from gating.errors import InputError
from tests.support.family_models import FAMILIES
from tests.support.tiny_models import build

pytestmark = pytest.mark.filterwarnings("ignore:.*nearly arbitrary:UserWarning")


def trained_gates(model, objective, **options):
    gates = gating.inject_gates(model, **options)
    objective.attach(gates)
    generator = torch.Generator().manual_seed(0)
    # The heads of the first layer are the best, so that a choice without the objective takes them.
    order = torch.linspace(3, -3, gates.log_alpha.numel()) + 0.1 * torch.rand(
        gates.log_alpha.shape, generator=generator
    )
    gates.log_alpha.data.copy_(order)
    objective.update(gates, 1.0)
    return gates


class OwnChoice(gating.Objective):
    """An objective of a user."""

    def target(self, gates):
        return 2.0

    def kept(self, gates):
        return torch.arange(gates.log_alpha.numel()) >= gates.log_alpha.numel() - 2


OBJECTIVES = {
    "uniform": lambda: gating.ExactBudget(num_heads=6, uniform=True),
    "least": lambda: gating.ExactBudget(num_heads=6, min_per_layer=2),
    "lagrangian": lambda: gating.Lagrangian(num_heads=6, uniform=True),
    "topk": lambda: gating.TopK(num_heads=6, min_per_layer=1),
    "magnitude": lambda: gating.IterativePruning(gating.Magnitude(), num_heads=6, uniform=True),
}


@pytest.mark.parametrize("how", ["attached", "given", "number", "both"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_all_settings_of_the_objective_count(name, how):
    model, objective = build("bert"), OBJECTIVES[name]()
    gates = trained_gates(model, objective)
    expected = objective.kept(gates)
    arguments = {
        "attached": ((), {}),
        "given": ((objective,), {}),
        "number": ((), {"num_heads": 6}),
        "both": ((objective,), {"num_heads": 6}),
    }[how]
    report = gating.finalize(model, gates, *arguments[0], **arguments[1])
    assert report.num_heads == 6
    assert [len(heads) for heads in report.kept_heads.values()] == [int(part.sum()) for part in expected.view(3, 4)]
    if name != "topk":
        assert min(map(len, report.kept_heads.values())) == 2


def test_budgets_by_kind_count():
    model = FAMILIES["bart"].build()
    objective = gating.ExactBudget(num_heads={"encoder": 2, "decoder": 3, "cross": 4})
    gates = trained_gates(model, objective)
    kinds = [kind for kind, size in zip(gates.block_kinds, gates.block_sizes, strict=True) for _ in range(size)]
    kept = [kind for kind, is_kept in zip(kinds, objective.kept(gates).tolist(), strict=True) if is_kept]
    assert [kept.count(kind) for kind in ("encoder", "decoder", "cross")] == [2, 3, 4]
    names = gates.block_names
    report = gating.finalize(model, gates, num_heads=9)
    by_kind = dict.fromkeys(gates.block_kinds, 0)
    for name, kind in zip(names, gates.block_kinds, strict=True):
        by_kind[kind] += len(report.kept_heads[name])
    assert by_kind == {"encoder": 2, "decoder": 3, "cross": 4}


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("make", [*OBJECTIVES.values(), gating.NoObjective])
def test_a_number_that_contradicts_the_objective_is_an_error(make, given):
    model, objective = build("bert"), make()
    gates = trained_gates(model, objective)
    with pytest.raises(InputError, match="num_heads=5"):
        gating.finalize(model, gates, *([objective] if given else []), num_heads=5)
    assert model.head_gates is gates
    kept = gating.ExactBudget(num_heads=5).kept(gates)
    assert gating.finalize(model, gates, kept=kept).num_heads == 5


@pytest.mark.parametrize("price", [1.0, 1e6])
def test_a_price_sets_no_number(price):
    model, objective = build("bert"), gating.FixedPrice(price=price)
    gates = trained_gates(model, objective)
    if price > 1:
        gates.log_alpha.data.sub_(20)
    report = gating.finalize(model, gates, objective, num_heads=5)
    assert report.num_heads == 5


def test_an_objective_of_another_class_is_given():
    model, objective = build("bert"), OwnChoice()
    gates = gating.inject_gates(model)
    objective.attach(gates)
    with pytest.raises(InputError, match="2 heads"):
        gating.finalize(model, gates, objective, num_heads=3)
    report = gating.finalize(model, gates, objective)
    assert list(report.kept_heads.values()) == [(), (), (2, 3)]


def test_one_thing_chooses():
    model, objective = build("bert"), gating.ExactBudget(num_heads=6)
    gates = trained_gates(model, objective)
    with pytest.raises(InputError, match="objective"):
        gating.finalize(model, gates, objective, kept=objective.kept(gates))
    for wrong in (6, gating.ExactBudget, "budget"):
        with pytest.raises((AttributeError, TypeError)):
            gating.finalize(model, gates, wrong)
    assert model.head_gates is gates


def test_another_objective_may_choose_from_trained_gates():
    model = build("bert")
    gates = trained_gates(model, gating.FixedPrice())
    report = gating.finalize(model, gates, gating.ExactBudget(num_heads=3, uniform=True))
    assert [len(heads) for heads in report.kept_heads.values()] == [1, 1, 1]
