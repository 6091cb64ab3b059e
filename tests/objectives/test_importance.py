"""Michel et al. 2019: the expected sensitivity of the loss to a head's mask variable."""

import copy

import pytest
import torch
from torch import nn

import gating
from gating.objectives import Fisher, Importance
from gating.objectives.rounds import MaskSampler
from gating.proof.probe import make_probe
from tests.support.family_models import FAMILIES
from tests.support.tiny_models import batch_for
from tests.support.versions import enable_checkpointing

BOTH = ("heads", "neurons")


@pytest.fixture
def batch(bert):
    return batch_for(bert) | {"labels": torch.tensor([0, 2])}


def watched(model, **options):
    gates = gating.inject_gates(model, **options)
    gates.sampler = MaskSampler(gates, [0.0])
    ranking = Importance()
    ranking.attach(gates)
    return gates, ranking


def loss_of(model, batch):
    """The mean over the examples, as every task has it."""
    if batch.get("labels") is None:
        logits = model(**batch).logits
        return logits.flatten(1).float().pow(2).mean()
    return model(**batch).loss


def gradient_of_each_example(model, gates, batch, values):
    """Equation 2 by hand: the derivative of each example's loss with respect to each mask variable xi."""
    found = []
    for index in range(len(batch["input_ids"])):
        xi = values.clone().requires_grad_()
        with gates.fixed_at(xi):
            loss = loss_of(model, {name: tensor[index : index + 1] for name, tensor in batch.items()})
        found.append(torch.autograd.grad(loss, xi)[0])
    return torch.stack(found)


@pytest.mark.parametrize(
    ("options", "size", "closed"),
    [
        ({}, 12, []),
        ({}, 12, [0, 5, 6]),
        ({"units": BOTH, "group_size": 16}, 21, []),
        ({"units": BOTH, "group_size": 20}, 21, []),
    ],
)
def test_importance_is_the_mean_absolute_gradient_of_the_mask_variables(bert, batch, options, size, closed):
    """Closed heads have none and change that of the others; groups of neurons have mask variables as heads have."""
    gates, ranking = watched(bert, **options)
    mask = torch.ones(size)
    mask[closed] = 0
    gates.sampler.close(mask > 0)
    loss_of(bert, batch).backward()
    collected = ranking.importance.clone()
    by_hand = gradient_of_each_example(bert, gates, batch, mask).abs().mean(dim=0) * mask
    torch.testing.assert_close(collected, by_hand, rtol=1e-4, atol=1e-7)


def test_importance_adds_up_over_batches_and_can_be_forgotten(bert, batch):
    gates, ranking = watched(bert)
    loss_of(bert, batch).backward()
    once = ranking.importance.clone()
    loss_of(bert, batch).backward()
    torch.testing.assert_close(ranking.importance, 2 * once)
    ranking.start_over(gates)
    assert ranking.importance.abs().sum() == 0


@pytest.mark.parametrize("group_queries", [True, False])
def test_a_gate_of_a_group_has_one_mask_variable(group_queries):
    model = FAMILIES["llama"].build().eval()
    gates, ranking = watched(model, group_queries=group_queries)
    batch = {name: tensor for name, tensor in make_probe(model).items() if isinstance(tensor, torch.Tensor)}
    batch.pop("labels", None)
    loss_of(model, batch).backward()
    collected = ranking.importance.clone()
    by_hand = gradient_of_each_example(model, gates, batch, torch.ones_like(collected)).abs().mean(dim=0)
    torch.testing.assert_close(collected, by_hand, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(ranking.scores(gates).view(3, -1).norm(dim=1), torch.ones(3))


def test_scores_have_a_norm_of_one_in_each_layer(bert):
    gates, ranking = watched(bert)
    ranking.importance.copy_(torch.tensor([3.0, 4, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0]))
    expected = [0.6, 0.8, 0, 0, 0.5, 0.5, 0.5, 0.5, 0, 0, 0, 0]
    assert ranking.scores(gates).tolist() == pytest.approx(expected)


def test_sensitivity_by_hand():
    # Two examples of two tokens; two gates of two features.
    heads = torch.tensor([[[1.0, 2, 3, 4], [1, 1, 1, 1]], [[0, 1, 0, 1], [2, 0, 2, 0]]])
    gradient = torch.tensor([[[1.0, 0, -1, 0], [-3, 0, 0, 2]], [[5, 5, -1, -1], [1, 1, 1, 1]]])
    # Example 1: gate 1 has 1 - 3 = -2, gate 2 has -3 + 2 = -1; example 2: 5 + 2 = 7 and -1 + 2 = 1.
    assert gating.Importance().of_batch(heads, gradient, 2, ()).tolist() == [9.0, 2.0]


def test_infinite_gradients_do_not_count():
    heads, gradient = torch.ones(2, 1, 2), torch.tensor([[[torch.inf, 1.0]], [[1.0, torch.nan]]])
    assert gating.Importance().of_batch(heads, gradient, 2, ()).tolist() == [1.0, 1.0]


def test_nothing_is_watched_in_evaluation_and_after_the_removal_of_the_gates(bert, batch):
    gates, ranking = watched(bert)
    with torch.no_grad():
        loss_of(bert, batch)
    assert ranking.importance.abs().sum() == 0
    gates.remove()
    loss_of(bert, batch).backward()
    assert ranking.importance.abs().sum() == 0
    assert not any(module._forward_pre_hooks for module in bert.modules())


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_importance_is_collected_once_inside_of_a_checkpoint(bert, batch, use_reentrant):
    gates, ranking = watched(bert)
    loss_of(bert, batch).backward()
    expected = ranking.importance.clone()
    ranking.start_over(gates)
    for module in bert.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    bert.train()
    enable_checkpointing(bert, {"use_reentrant": use_reentrant})
    loss_of(bert, batch).backward()
    torch.testing.assert_close(ranking.importance, expected, rtol=1e-4, atol=1e-7)


def test_a_copy_of_everything_collects_for_itself(bert, batch):
    _, ranking = watched(bert)
    model, copied = copy.deepcopy((bert, ranking))
    loss_of(model, batch).backward()
    assert copied.importance.abs().sum() > 0
    assert ranking.importance.abs().sum() == 0


def test_importance_in_half_precision_is_collected_in_full(bert, batch):
    _, ranking = watched(bert)
    loss_of(bert, batch).backward()
    expected = ranking.importance.clone()
    ranking.importance.zero_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = loss_of(bert, batch)
    loss.backward()
    assert ranking.importance.dtype == torch.float32
    # bfloat16 has 8 bits.
    torch.testing.assert_close(ranking.importance, expected, rtol=0.2, atol=0.05 * expected.max().item())


def test_layers_of_both_kinds_have_the_same_mean_square(bert):
    gates, ranking = watched(bert, units=("heads", "neurons"), group_size=8)
    ranking.importance.copy_(torch.rand(30, generator=torch.Generator().manual_seed(0)) + 0.1)
    for layer in ranking.scores(gates).split(gates.block_sizes):
        assert layer.square().mean().item() == pytest.approx(1.0)


def test_the_importance_of_a_smaller_group_is_that_of_one_neuron(bert):
    gates, ranking = watched(bert, units=("neurons",), group_size=20)
    ranking.importance.copy_(torch.tensor([20.0, 10.0, 8.0] * 3))
    expected = torch.tensor([1.0, 0.5, 1.0]) / 1.5
    torch.testing.assert_close(ranking.scores(gates), expected.repeat(3))


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_neurons_of_experts_are_ranked_by_token(family):
    model = FAMILIES[family].build()
    gates, ranking = watched(model, units=("neurons",), group_size=8)
    with torch.no_grad():
        gates.sampler.closed_in[1] = 1
    loss_of(model, make_probe(model)).backward()
    scores = ranking.scores(gates)
    assert scores.isfinite().all()
    assert scores[1] == 0
    assert (scores > 0).sum() == len(scores) - 1


def test_gates_of_unequal_cost_in_one_layer_are_ranked_per_cost(gates):
    """Two gates are as important; one of them costs twice as much."""
    sizes = torch.ones(12)
    sizes[0] = 2.0
    for ranking in (Importance(), Fisher()):
        ranking.attach(gates)
        ranking.importance.fill_(1.0)
        scores = ranking.scores(gates, sizes)
        assert (scores[1] / scores[0]).item() == pytest.approx(2.0)


@pytest.mark.parametrize("units", [("heads", "neurons"), ("neurons", "heads")])
def test_the_importance_of_layers_does_not_depend_on_how_their_units_are_grouped(bert, units):
    """A layer of neurons in half as large groups, of half the cost each, has the same scores per cost."""
    found = []
    for group_size, repeats in ((16, 1), (8, 2)):
        gates = gating.inject_gates(bert, units=units, group_size=group_size)
        ranking = Importance()
        ranking.attach(gates)
        per_layer = torch.tensor([3.0, 1.0, 2.0]).repeat_interleave(repeats) / repeats
        ranking.importance.copy_(torch.cat([torch.ones(12), per_layer.repeat(3)]))
        budget = gating.objectives.HeadBudget(keep=0.5)
        sizes = torch.tensor(budget.parts(gates)[0].sizes)
        scores = ranking.scores(gates, sizes)
        found.append((scores[:12], scores[12::repeats]))
        gates.remove()
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("cost", ["macs", "parameters", {"heads": 3.0, "neurons": 1.0}])
def test_fisher_information_is_divided_by_the_cost_that_gates_compete_for(bert, cost):
    gates = gating.inject_gates(bert, units=("heads", "neurons"), group_size=16)
    objective = gating.IterativePruning(Fisher(), keep=0.5, cost=cost)
    objective.attach(gates)
    costs = gating.objectives.costs.gate_costs(gates, cost)
    # As important as they are costly: no gate is better than another.
    objective.ranking.importance.copy_(costs)
    scores = objective._scores(gates, objective._parts)
    torch.testing.assert_close(scores, torch.ones(21))
