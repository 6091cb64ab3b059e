"""Scaling of head outputs by the draw of each pass."""

import copy

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BartConfig,
    GPT2Config,
    MarianConfig,
    MBartConfig,
    OPTConfig,
)

import gating
from gating.gates import hard_concrete
from tests.support.gated import TOTAL, seen_scales, without_dropout
from tests.support.tiny_models import (
    NUM_HEADS,
    NUM_LAYERS,
    batch_for,
    logits_of,
)
from tests.support.versions import enable_checkpointing

_SEQ2SEQ = {"vocab_size": 30, "d_model": 16, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 16}
CAUSAL = {
    "opt": OPTConfig(
        vocab_size=30,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        ffn_dim=16,
        word_embed_proj_dim=16,
        max_position_embeddings=16,
    ),
    "bart": BartConfig(**_SEQ2SEQ, is_decoder=True, is_encoder_decoder=False),
    "mbart": MBartConfig(**_SEQ2SEQ, is_decoder=True, is_encoder_decoder=False),
    "marian": MarianConfig(**_SEQ2SEQ, is_decoder=True, is_encoder_decoder=False, pad_token_id=0),
    "gpt2": GPT2Config(vocab_size=30, n_embd=16, n_layer=2, n_head=4),
}


def test_open_gates_change_no_bit_in_training(model):
    batch = batch_for(model)
    model.train()
    torch.manual_seed(0)
    expected = logits_of(model, batch)
    gates = gating.inject_gates(model)
    torch.manual_seed(0)
    with gates.fixed_at(torch.ones(TOTAL)):
        assert torch.equal(logits_of(model, batch), expected)


def test_open_gates_change_no_bit_under_bfloat16_autocast(bert):
    batch = batch_for(bert)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = logits_of(bert, batch)
        gates = gating.inject_gates(bert)
        with gates.fixed_at(torch.ones(TOTAL)):
            assert torch.equal(logits_of(bert, batch), expected)


def test_gate_values_scale_their_columns_of_the_output_projection(model):
    batch = batch_for(model)
    reference = copy.deepcopy(model)
    values = torch.tensor([0.0, 1.0, 0.25, 0.0] * NUM_LAYERS).roll(2)
    for block, block_values in zip(gating.find_attention_blocks(reference), values.split(NUM_HEADS), strict=True):
        with torch.no_grad():
            block.output_projection.weight *= block_values.repeat_interleave(block.head_dim)
    gates = gating.inject_gates(model)
    with gates.fixed_at(values):
        found = logits_of(model, batch)
    # Zeros, ones and quarters scale without rounding; only sums over other orders could differ.
    torch.testing.assert_close(found, logits_of(reference, batch), rtol=0, atol=1e-5)


def test_closed_gates_of_one_block_leave_the_others_alone(bert, gates):
    values = torch.ones(TOTAL)
    values[5] = 0.0
    with gates.fixed_at(values):
        scales = seen_scales(bert, batch_for(bert))
    assert [scale.flatten(0, 1)[0].reshape(NUM_HEADS, -1).mean(1).tolist() for scale in scales] == [
        [1, 1, 1, 1],
        [1, 0, 1, 1],
        [1, 1, 1, 1],
    ]


def test_one_sample_serves_the_whole_forward_pass(bert, monkeypatch):
    gates = gating.inject_gates(without_dropout(bert), init_prob_open=0.6)
    drawn = []
    sample = hard_concrete.sample
    monkeypatch.setattr(
        hard_concrete, "sample", lambda *args, **kwargs: drawn.append(sample(*args, **kwargs)) or drawn[-1]
    )
    scales = seen_scales(bert.train(), batch_for(bert))
    assert len(drawn) == 1
    for scale, values in zip(scales, drawn[0].split(gates.block_sizes), strict=True):
        rows = scale.flatten(0, 1)
        # A quotient of the inputs after and before, so rounded.
        torch.testing.assert_close(rows, values.detach().repeat_interleave(8).expand_as(rows), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("where", ["frozen gates", "a part without gradient"])
def test_one_sample_serves_the_whole_forward_pass_without_gradients(bert, monkeypatch, where):
    gates = gating.inject_gates(bert, init_prob_open=0.6)
    draws = []
    sample = gates.sample
    monkeypatch.setattr(gates, "sample", lambda: draws.append(1) or sample())
    if where == "frozen gates":
        gates.requires_grad_(False)
    else:
        first = bert.bert.encoder.layer[0]
        monkeypatch.setattr(first, "forward", torch.no_grad()(first.forward))
    bert.train()(**batch_for(bert))
    assert len(draws) == 1


def test_two_training_passes_draw_different_gates(bert):
    gating.inject_gates(without_dropout(bert), init_prob_open=0.6)
    batch = batch_for(bert)
    bert.train()
    assert not torch.equal(logits_of(bert, batch), logits_of(bert, batch))


def test_the_seed_repeats_a_training_pass(bert):
    gating.inject_gates(bert, init_prob_open=0.6)
    batch = batch_for(bert)
    bert.train()
    torch.manual_seed(5)
    first = logits_of(bert, batch)
    torch.manual_seed(5)
    assert torch.equal(logits_of(bert, batch), first)


def test_evaluation_is_deterministic_and_draws_nothing(bert):
    gates = gating.inject_gates(bert, init_prob_open=0.6)
    batch = batch_for(bert)
    state = torch.get_rng_state()
    first = logits_of(bert, batch)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(logits_of(bert, batch), first)
    with gates.fixed_at(gates.values().detach()):
        assert torch.equal(logits_of(bert, batch), first)


def test_evaluation_follows_a_change_of_the_gates(bert, gates):
    batch = batch_for(bert)
    before = logits_of(bert, batch)
    with torch.no_grad():
        gates.log_alpha[:6] = -5.0
    assert not torch.equal(logits_of(bert, batch), before)


def test_the_gradient_reaches_every_gate(model):
    gates = gating.inject_gates(model, init_prob_open=0.6)
    torch.manual_seed(0)
    for _ in range(10):  # In one draw some gates are saturated and get none.
        model.train()(**batch_for(model)).logits.square().sum().backward()
    assert gates.log_alpha.grad.isfinite().all()
    assert (gates.log_alpha.grad != 0).all()


@pytest.mark.parametrize("family", ["opt", "bart", "mbart", "marian", "gpt2"])
def test_a_language_model_that_calls_a_part_of_its_inner_model_draws_once_a_pass(family, monkeypatch):
    """Two passes before the gates change, as when gradients are accumulated; OPT never calls its inner model."""
    model = AutoModelForCausalLM.from_config(CAUSAL[family]).train()
    gates = gating.inject_gates(model, init_prob_open=0.6)
    draws, sample = [], gates.sample
    monkeypatch.setattr(gates, "sample", lambda: draws.append(1) or sample())
    ids = torch.tensor([[5, 6, 7, 8]])
    for num_passes in (1, 2):
        model(input_ids=ids, labels=ids).loss.backward()
        assert len(draws) == num_passes
    model.base_model(input_ids=ids)
    assert len(draws) == 3


def test_gradient_checkpointing_gives_the_same_gradients(model):
    gates = gating.inject_gates(model, init_prob_open=0.6)
    twin = copy.deepcopy(model)
    enable_checkpointing(twin)
    for one in (model, twin):
        torch.manual_seed(4)
        one.train()(**batch_for(one)).logits.square().sum().backward()
    assert (gates.log_alpha.grad != 0).any()
    expected = {name: parameter.grad for name, parameter in model.named_parameters()}
    for name, parameter in twin.named_parameters():
        # The same operations again, summed in another order at most.
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-5, atol=1e-6)


def test_factors_are_on_the_device_of_the_features(gates):
    """Towers of a model may be on several devices; meta stands for another one."""
    features = torch.ones(1, 2, 32, device="meta")
    gate = gates.blocks()[1].output_projection.gate
    assert gate(features).is_meta
    assert gate(torch.ones(1, 2, 32)).device == torch.device("cpu")
