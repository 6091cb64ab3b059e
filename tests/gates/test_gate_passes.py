"""Sampled gates belong to one pass of a model, also where submodules are called alone or recomputed."""

import pytest
import torch
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint
from transformers import T5Config, T5ForConditionalGeneration

import gating
from gating.proof.probe import make_probe
from tests.support.family_models import FAMILIES
from tests.support.tiny_models import batch_for, build
from tests.support.versions import enable_checkpointing

# Torch 2.6 warns of it also where nothing is to learn.
pytestmark = pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")

QUIET = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def build_gated():
    """Build a BERT whose training is random in its gates alone, and return it with them."""
    model = build("bert", **QUIET)
    gates = gating.inject_gates(model, init_prob_open=0.6)
    return model.train(), gates


def test_a_submodule_uses_gates_changed_by_the_objective():
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(T5Config(vocab_size=60, d_model=16, d_kv=4, d_ff=16, num_layers=2, num_heads=4))
    gates = gating.inject_gates(model)
    objective = gating.ExactBudget(num_heads=8)
    objective.attach(gates)
    with torch.no_grad():
        gates.log_alpha.add_(torch.randn_like(gates.log_alpha))
    ids = torch.randint(2, 60, (2, 6))
    objective.update(gates, 0.0)
    model.eval()
    with torch.no_grad():
        before = model.get_encoder()(input_ids=ids)[0]
        objective.update(gates, 1.0)
        after = model.get_encoder()(input_ids=ids)[0]
        gates.renew_values()
        assert torch.equal(after, model.get_encoder()(input_ids=ids)[0])
    assert not torch.equal(after, before)


def test_a_part_can_be_trained_again_before_the_gates_are():
    model, gates = build_gated()
    hidden = torch.randn(2, 5, 32)
    outputs = []
    for _ in range(2):
        outputs.append(model.bert.encoder(hidden)[0])
        outputs[-1].sum().backward()
    assert not torch.equal(*outputs)
    assert (gates.log_alpha.grad != 0).any()


def test_activations_are_not_computed_again_with_the_gates_of_another_pass():
    model, _ = build_gated()
    enable_checkpointing(model)
    first, second = (model(**batch_for(model, seed=seed)).logits.sum() for seed in (1, 2))
    with pytest.raises(RuntimeError, match="each forward"):
        (first + second).backward()


def test_a_backward_pass_after_an_update_of_the_objective_is_refused():
    (model, gates), objective = build_gated(), gating.ExactBudget(num_heads=4)
    objective.attach(gates)
    enable_checkpointing(model)
    first = model(**batch_for(model, seed=1)).logits.sum()
    objective.update(gates, 0.5)
    second = model(**batch_for(model, seed=2)).logits.sum()
    with pytest.raises(RuntimeError, match="each forward"):
        (first + second).backward()


def test_passes_that_ended_or_were_dropped_do_not_stand_in_the_way_of_checkpointing():
    model, gates = build_gated()
    enable_checkpointing(model)
    model(**batch_for(model, seed=1))
    kept = model(**batch_for(model, seed=2)).logits.sum()
    kept.backward()
    model(**batch_for(model, seed=3)).logits.sum().backward()
    assert (gates.log_alpha.grad != 0).any()


def test_a_pass_that_failed_leaves_no_trace():
    model = FAMILIES["opt"].build()
    gates = gating.inject_gates(model, init_prob_open=0.6)
    model.train()
    with pytest.raises(IndexError):
        model(input_ids=torch.randint(0, 60, (2, 400)))
    ids = torch.randint(0, 60, (2, 8))
    with torch.no_grad():
        first, second = (model.model.decoder(input_ids=ids)[0] for _ in range(2))
        gates.eval()
    assert first.shape == second.shape
    assert not gates.pass_values._is_made_for_base


def call_text_features(model, batch):
    return model.get_text_features(input_ids=batch["input_ids"]).pooler_output


def call_encoder(model, batch):
    return model.get_encoder()(input_ids=batch["input_ids"]).last_hidden_state


def call_layer(model, batch):
    return checkpoint(
        model.bert.encoder.layer[1], torch.ones(1, 3, model.config.hidden_size, requires_grad=True), use_reentrant=True
    )


PARTS = [("clip", call_text_features), ("t5", call_encoder), ("bart", call_encoder)]


@pytest.mark.parametrize("num_calls", [1, 2])
@pytest.mark.parametrize(("family", "call"), PARTS)
def test_checkpoints_in_parts_that_are_called_alone_change_no_gradient(family, call, num_calls):
    gradients = []
    for checkpointed in (False, True):
        model = FAMILIES[family].build()
        gates = gating.inject_gates(model, init_prob_open=0.6)
        if checkpointed:
            enable_checkpointing(model)
        batch = make_probe(model.train())
        torch.manual_seed(0)
        for _ in range(2):
            # As a text and its positive in contrastive training.
            sum(call(model, batch).pow(2).sum() for _ in range(num_calls)).backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert gates.log_alpha.grad.abs().sum() > 0
    assert_close(gradients[1], gradients[0])


def test_parts_that_are_called_alone_have_new_values_after_each_backward():
    model = FAMILIES["clip"].build().train()  # Which draws no other random numbers.
    gating.inject_gates(model, init_prob_open=0.6)
    answers = []
    for _ in range(3):
        answers.append(call_text_features(model, make_probe(model)))
        answers[-1].sum().backward()
    assert len({float(answer.detach().sum()) for answer in answers}) == 3


def test_a_part_without_gradients_may_be_in_a_reentrant_checkpoint():
    model = build("bert", **QUIET).train()
    gating.inject_gates(model)
    with torch.no_grad():
        call_layer(model, {})
        with pytest.raises(ValueError, match="input_ids"):
            model()
    with pytest.raises(RuntimeError):
        call_layer(model, {}).sum().backward()


@pytest.mark.parametrize("part", ["", "bert"])
def test_a_whole_pass_inside_of_a_reentrant_checkpoint_gives_gates_the_same_gradient(part):
    model, gates = build_gated()
    batch = batch_for(model)
    embedded = model.get_input_embeddings()(batch["input_ids"]).detach().requires_grad_()

    def run(inputs):
        return model.get_submodule(part)(inputs_embeds=inputs)[0].pow(2).sum()

    gradients = []
    for wrapped in (run, lambda inputs: checkpoint(run, inputs, use_reentrant=True)):
        torch.manual_seed(0)
        gates.log_alpha.grad = None
        wrapped(embedded).backward()
        gradients.append(gates.log_alpha.grad)
    assert gradients[0].abs().sum() > 0
    assert_close(gradients[1], gradients[0])


def test_a_part_that_runs_without_gradients_leaves_the_others_theirs():
    model, gates = build_gated()
    first = model.bert.encoder.layer[0]
    original = first.forward
    first.forward = torch.no_grad()(original)
    model(**batch_for(model)).logits.sum().backward()
    frozen, *others = gates.log_alpha.grad.split(gates.block_sizes)
    assert not frozen.any()
    assert all(part.abs().sum() > 0 for part in others)
