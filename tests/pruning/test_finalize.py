"""A finalized model computes the outputs of the gated one."""

import pytest
import torch

import gating
from gating.pruning.finalize import decide_gate_values
from tests.support.tiny_models import (
    NUM_HEADS,
    NUM_LAYERS,
    batch_for,
    build,
    logits_of,
)

TOTAL = NUM_LAYERS * NUM_HEADS
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}  # Single precision, sums in another order.


def spread_gates(model, *, seed=0, **options):
    """Inject gates: some closed, some open, some in between."""
    gates = gating.inject_gates(model, **options)
    with torch.no_grad():
        gates.log_alpha.copy_(3 * torch.randn(gates.num_heads, generator=torch.Generator().manual_seed(seed)))
    return gates


def fixed_logits(model, gates, values, batch):
    with gates.fixed_at(values):
        return logits_of(model, batch)


@pytest.mark.parametrize("num_heads", [1, 3, 7, TOTAL])
def test_num_heads_are_kept_exactly(model, num_heads):
    batch = batch_for(model)
    gates = spread_gates(model)
    values = decide_gate_values(gates, num_heads=num_heads)
    best = set(gates.log_alpha.topk(num_heads).indices.tolist())
    expected = fixed_logits(model, gates, values, batch)
    report = gating.finalize(model, gates, num_heads=num_heads)
    kept = {NUM_HEADS * layer + head for layer, heads in enumerate(report.kept_heads.values()) for head in heads}
    assert kept == best
    assert report.num_heads == num_heads
    assert sum(block.num_heads for block in gating.find_attention_blocks(model)) == num_heads
    torch.testing.assert_close(logits_of(model, batch), expected, **TOLERANCE)


def test_a_kept_head_with_a_closed_gate_gets_its_probability_of_being_open(gates):
    with torch.no_grad():
        gates.log_alpha.copy_(torch.linspace(-4, -3, TOTAL))
    assert gates.num_open() == 0
    values = decide_gate_values(gates, num_heads=5)
    assert (values > 0).sum() == 5
    torch.testing.assert_close(values[-5:], gates.prob_open().detach()[-5:])
    assert (values[:-5] == 0).all()


def test_the_report_counts_before_and_after(bert):
    before = sum(parameter.numel() for parameter in bert.parameters())
    report = gating.finalize(bert, spread_gates(bert), num_heads=5)
    assert (report.num_heads_before, report.num_heads) == (TOTAL, 5)
    assert report.num_parameters_before == before
    assert report.num_parameters == sum(parameter.numel() for parameter in bert.parameters()) < before
    assert list(report.kept_heads) == [block.name for block in gating.find_attention_blocks(bert)]


def test_the_mode_of_the_model_stays(bert):
    bert.train()
    gating.finalize(bert, spread_gates(bert), num_heads=5)
    assert bert.training


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_model_is_finalized_and_proven(bert, dtype):
    gates = spread_gates(bert.to(dtype))
    report = gating.finalize(bert, gates, num_heads=5)
    assert (report.num_heads, report.unproven) == (5, ())
    assert {parameter.dtype for parameter in bert.parameters()} == {dtype}


def test_frozen_output_projections_stay_frozen(bert):
    for block in gating.find_attention_blocks(bert):
        block.output_projection.weight.requires_grad_(False)
    gating.finalize(bert, spread_gates(bert), num_heads=7)
    for block in gating.find_attention_blocks(bert):
        assert not block.output_projection.weight.requires_grad


def test_excluded_blocks_keep_every_head(bert):
    name = "encoder.layer.1.attention.self"
    batch = batch_for(bert)
    gates = spread_gates(bert, exclude=[name])
    expected = fixed_logits(bert, gates, gates.values().detach(), batch)
    report = gating.finalize(bert, gates)
    assert report.kept_heads[name] == (0, 1, 2, 3)
    torch.testing.assert_close(logits_of(bert, batch), expected, **TOLERANCE)


def test_a_probe_of_the_caller_is_used(bert):
    gates = spread_gates(bert)
    probe = {"input_ids": torch.full((1, 4), 7)}
    seen = []
    handle = bert.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs["input_ids"]), with_kwargs=True)
    gating.finalize(bert, gates, num_heads=5, probe=probe)
    handle.remove()
    assert len(seen) == 4  # masked, masked with one rounding, its gradient, compact
    assert all(torch.equal(tokens, probe["input_ids"]) for tokens in seen)


def test_a_model_with_short_texts_can_be_finalized():
    model = build("bert", max_position_embeddings=8)
    assert gating.finalize(model, spread_gates(model), num_heads=5).num_heads == 5
