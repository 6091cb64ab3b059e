"""Gates on frozen weights: what is trained, what stays, the model as its own teacher, and values above 1."""

import copy

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import gating
from gating.gates.attachment import freeze, unfreeze
from gating.objectives.rankings import derivatives
from gating.teachers.teacher import OpenTeacher
from tests.support.tiny_models import randomize
from tests.support.versions import enable_checkpointing

BATCH = {"input_ids": torch.arange(24).reshape(2, 12) % 20}
BOTH = {"units": ["heads", "neurons"], "group_size": 8}


@pytest.fixture
def llama():
    config = LlamaConfig(
        vocab_size=20,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        attention_dropout=0.2,
    )
    model = LlamaForCausalLM(config)
    randomize(model)
    return model.train()


def deterministic(**budget):
    return gating.DeterministicBudget(ranking=gating.Fisher(per="token"), **budget)


def search_frozen(model, objective, *, steps=20):
    """Train gates on frozen weights that learn from the model itself; return the search at its end."""
    freeze(model)
    gates = gating.inject_gates(model, **BOTH)
    search, teacher = gating.Search(gates, objective), OpenTeacher(model, gates)
    groups = gating.parameter_groups(model, lr=1e-3, gates=gates, objective=search.objective)
    assert [group["name"] for group in groups] == ["gates"]
    optimizer = torch.optim.AdamW(groups)
    for step in range(steps):
        torch.manual_seed(step)
        search.update(step / steps)
        dense = teacher(**BATCH)
        outputs = model(**BATCH, labels=BATCH["input_ids"])
        loss = gating.Distillation().loss(outputs.loss, outputs, dense, None)
        search.add_penalty(loss).backward()
        optimizer.step()
        optimizer.zero_grad()
    return search


@pytest.mark.parametrize("objective", [gating.ExactBudget, deterministic])
def test_no_weight_changes_and_the_budget_is_kept(llama, objective):
    before = copy.deepcopy(llama.state_dict())
    search = search_frozen(llama, objective(keep=0.6))
    kept, costs = search.kept(), search.gates.macs_per_gate
    for name, tensor in llama.state_dict().items():
        if "head_gates" not in name:
            assert torch.equal(tensor, before[name]), name
    left = 0.6 * costs.sum() - costs[kept].sum()
    assert 0 <= left < costs[~kept].min()
    assert all(parameter.grad is None for name, parameter in llama.named_parameters() if "head_gates" not in name)


def test_values_are_the_same_in_training_and_evaluation_and_may_exceed_one(llama):
    search = search_frozen(llama, deterministic(keep=0.6))
    kept, gates = search.kept(), search.gates
    values = gates.values().detach()
    assert torch.equal(values > 0, kept)
    assert torch.equal(gates.train().sample(), values)
    assert values.max() > 1
    assert len(values[kept].unique()) > 1


def test_removal_of_gates_above_one_equals_the_masked_model(llama):
    search = search_frozen(llama, deterministic(keep=0.6))
    kept, gates = search.kept(), search.gates
    llama.eval()
    with torch.no_grad():
        masked = llama(**BATCH).logits
        report = gating.finalize(llama, gates, kept=kept)
        compact = llama(**BATCH).logits
    torch.testing.assert_close(compact, masked, rtol=1e-4, atol=1e-5)
    folded = [value for values in report.folded.values() for value in values]
    assert max(folded) > 1
    assert report.max_difference < 1e-5


def test_the_open_teacher_is_the_dense_model_and_leaves_everything_as_it_was(llama):
    with torch.no_grad():
        dense = copy.deepcopy(llama).eval()(**BATCH).logits
    freeze(llama)
    gates = gating.inject_gates(llama, **BOTH)
    nn.init.normal_(gates.log_alpha)
    llama.model.layers[1].eval()
    modes = [module.training for module in llama.modules()]
    found = OpenTeacher(llama, gates)(**BATCH).logits
    torch.testing.assert_close(found, dense)
    assert not found.requires_grad
    assert [module.training for module in llama.modules()] == modes
    assert not gates.is_fixed


def test_the_open_teacher_has_no_adapters(llama):
    peft = pytest.importorskip("peft")
    with torch.no_grad():
        dense = copy.deepcopy(llama).eval()(**BATCH).logits
    lora = peft.LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(llama, lora)
    gates = gating.inject_gates(adapted.get_base_model(), **BOTH)
    trained = {name for name, one in adapted.named_parameters() if one.requires_grad}
    teacher = OpenTeacher(adapted.get_base_model(), gates)
    torch.testing.assert_close(teacher(**BATCH).logits, dense)
    assert {name for name, one in adapted.named_parameters() if one.requires_grad} == trained
    with torch.no_grad(), gates.fixed_at(torch.ones_like(gates.log_alpha)):
        assert not torch.allclose(adapted.eval()(**BATCH).logits, dense)


def test_gradient_checkpointing_and_the_open_teacher_give_the_same_gradient(llama):
    freeze(llama)
    for module in llama.modules():
        module.attention_dropout = 0.0
    gates = gating.inject_gates(llama, **BOTH)
    nn.init.normal_(gates.log_alpha)
    teacher, gradients = OpenTeacher(llama, gates), []
    for is_checkpointed in (False, True):
        if is_checkpointed:
            enable_checkpointing(llama)
        torch.manual_seed(0)
        dense = teacher(**BATCH, use_cache=False)
        outputs = llama(**BATCH, labels=BATCH["input_ids"], use_cache=False)
        gating.Distillation().loss(outputs.loss, outputs, dense, None).backward()
        gradients.append(gates.log_alpha.grad.clone())
        gates.log_alpha.grad = None
    torch.testing.assert_close(gradients[0], gradients[1])


def test_frozen_weights_are_named_and_can_be_trained_again(llama):
    llama.lm_head.requires_grad_(False)
    trained = {name for name, one in llama.named_parameters() if one.requires_grad}
    names = freeze(llama)
    assert names == trained
    assert not any(one.requires_grad for one in llama.parameters())
    gates = gating.inject_gates(llama)
    assert gates.log_alpha.requires_grad
    freeze(llama)
    assert gates.log_alpha.requires_grad
    gates.remove()
    unfreeze(llama, names)
    assert {name for name, one in llama.named_parameters() if one.requires_grad} == trained


@pytest.mark.parametrize("ranking", [gating.Importance, gating.Fisher])
def test_rankings_of_frozen_weights_are_those_of_trained_ones(llama, ranking):
    scores = []
    for is_frozen in (False, True):
        model = copy.deepcopy(llama).eval()
        if is_frozen:
            freeze(model)
        gates, objective = gating.inject_gates(model, **BOTH), gating.IterativePruning(ranking(), keep=0.5)
        objective.attach(gates)
        objective.update(gates, 0.3)
        model(**BATCH, labels=BATCH["input_ids"]).loss.backward()
        scores.append(objective.ranking.scores(gates))
    torch.testing.assert_close(scores[0], scores[1])


def test_information_is_the_square_of_each_derivative():
    features, gradient = torch.randn(3, 5, 8), torch.randn(3, 5, 8)
    terms = derivatives(features, gradient, 4)
    assert terms.shape == (3, 5, 4)
    per_example = gating.Fisher().of_batch(features, gradient, 4, (2, 2, 2, 2))
    per_token = gating.Fisher(per="token").of_batch(features, gradient, 4, (2, 2, 2, 2))
    torch.testing.assert_close(per_example, terms.sum(dim=1).square().sum(dim=0))
    torch.testing.assert_close(per_token, terms.square().sum(dim=(0, 1)))


def test_gates_without_noise_begin_at_their_ranking_and_end_decided(llama):
    freeze(llama)
    gates = gating.inject_gates(llama, **BOTH)
    objective = deterministic(keep=0.6)
    search = gating.Search(gates, objective)
    search.update(0.0)
    assert (gates.values() == 1).all()
    llama(**BATCH, labels=BATCH["input_ids"]).loss.backward()
    scores = objective.ranking.scores(gates, gates.macs_per_gate)
    search.update(0.13)
    assert torch.equal(gates.log_alpha.argsort(), scores.argsort())
    costs, spread = gates.macs_per_gate / gates.macs_per_gate.sum(), []
    for progress in (0.3, 0.5, 0.66):
        search.update(progress)
        values = gates.values().detach()
        assert float(costs @ values.double()) == pytest.approx(objective.target(gates), abs=1e-4)
        spread.append(float(((values > 0.05) & (values < 0.95)).float().mean()))
    assert spread[0] > spread[-1]
    search.update(0.67)
    assert set(gates.values().tolist()) == {0.0, 1.0}
    assert torch.equal(search.kept(), gates.values() > 0)


def test_a_checkpoint_has_the_phase_the_mask_and_the_values(llama):
    search = search_frozen(llama, deterministic(keep=0.6))
    other = copy.deepcopy(llama)
    twin = gating.Search(other.head_gates, deterministic(keep=0.6))
    assert not torch.equal(other.head_gates.values(), search.gates.values())
    twin.load_state_dict(search.state_dict())
    assert torch.equal(other.head_gates.values(), search.gates.values())


def test_a_search_that_begins_anew_learns_the_same_parameter(llama):
    """An optimizer has it."""
    gates = gating.inject_gates(llama)
    search = gating.Search(gates, deterministic(keep=0.5))
    strength = gates.sampler.strength
    search.update(1.0)
    search.begin()
    assert gates.sampler.strength is strength
    assert gates.sampler.phase == 0
