"""To which pass of a model the values of gates belong, where parts of it are called or run again."""

import pytest
import torch
from tiny_models import batch_for, build
from transformers import OPTConfig, OPTForCausalLM, T5Config, T5ForConditionalGeneration

import gating

QUIET = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def test_a_part_sees_what_an_objective_has_changed():
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
        gates.forget_draw()
        assert torch.equal(after, model.get_encoder()(input_ids=ids)[0])
    assert not torch.equal(after, before)


def test_a_part_can_be_trained_again_before_the_gates_are():
    model = build("bert", **QUIET)
    gates = gating.inject_gates(model, init_prob_open=0.6)
    model.train()
    hidden = torch.randn(2, 5, 32)
    outputs = []
    for _ in range(2):
        outputs.append(model.bert.encoder(hidden)[0])
        outputs[-1].sum().backward()
    assert not torch.equal(*outputs)
    assert (gates.log_alpha.grad != 0).any()


def test_activations_are_not_computed_again_with_the_gates_of_another_pass():
    model = build("bert", **QUIET)
    gating.inject_gates(model, init_prob_open=0.6)
    model.train()
    model.activation_checkpointing_enable()
    first, second = (model(**batch_for(model, seed=seed)).logits.sum() for seed in (1, 2))
    with pytest.raises(RuntimeError, match=r"call backward\(\) after each forward pass"):
        (first + second).backward()


def test_a_pass_is_not_forgotten_where_the_objective_goes_on_before_its_backward():
    model = build("bert", **QUIET)
    gates, objective = gating.inject_gates(model, init_prob_open=0.6), gating.ExactBudget(num_heads=4)
    objective.attach(gates)
    model.train()
    model.activation_checkpointing_enable()
    first = model(**batch_for(model, seed=1)).logits.sum()
    objective.update(gates, 0.5)
    second = model(**batch_for(model, seed=2)).logits.sum()
    with pytest.raises(RuntimeError, match=r"call backward\(\) after each forward pass"):
        (first + second).backward()


def test_passes_that_ended_or_were_dropped_do_not_stand_in_the_way_of_checkpointing():
    model = build("bert", **QUIET)
    gates = gating.inject_gates(model, init_prob_open=0.6)
    model.train()
    model.activation_checkpointing_enable()
    model(**batch_for(model, seed=1))
    kept = model(**batch_for(model, seed=2)).logits.sum()
    kept.backward()
    model(**batch_for(model, seed=3)).logits.sum().backward()
    assert (gates.log_alpha.grad != 0).any()


def test_a_pass_that_failed_leaves_no_trace():
    model = OPTForCausalLM(
        OPTConfig(
            vocab_size=60,
            hidden_size=32,
            ffn_dim=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=40,
            word_embed_proj_dim=32,
        )
    )
    gates = gating.inject_gates(model, init_prob_open=0.6)
    model.train()
    with pytest.raises(IndexError):
        model(input_ids=torch.randint(0, 60, (2, 400)))
    ids = torch.randint(0, 60, (2, 8))
    with torch.no_grad():
        first, second = (model.model.decoder(input_ids=ids)[0] for _ in range(2))
        gates.eval()
    assert first.shape == second.shape
    assert not gates._announced


@pytest.mark.parametrize("family", ["bert", "distilbert", "vit"])
@pytest.mark.parametrize("inputs_learn", [False, True])
@pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed:FutureWarning")
def test_reentrant_checkpoints_which_would_leave_gates_without_gradient_are_refused(family, inputs_learn):
    model = build(family)
    gates = gating.inject_gates(model)
    batch = batch_for(model)
    model.train().gradient_checkpointing_enable({"use_reentrant": True})
    if inputs_learn:
        model.enable_input_require_grads()
    with pytest.raises(RuntimeError, match="gives the gates no gradient: enable it with use_reentrant=False"):
        model(**batch)
    with torch.no_grad():
        model(**batch)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model(**batch).logits.sum().backward()
    assert gates.log_alpha.grad.abs().sum() > 0


def test_a_part_that_runs_without_gradients_leaves_the_others_theirs():
    model = build("bert", **QUIET)
    gates = gating.inject_gates(model, init_prob_open=0.6)
    model.train()
    first = model.bert.encoder.layer[0]
    original = first.forward
    first.forward = torch.no_grad()(original)
    model(**batch_for(model)).logits.sum().backward()
    frozen, *others = gates.log_alpha.grad.split(gates.block_sizes)
    assert not frozen.any()
    assert all(part.abs().sum() > 0 for part in others)
