"""The vector of gates: values, fixed values, precision, state, table."""

import pytest
import torch
from torch import nn

import gating
from tests.support.gated import TOTAL
from tests.support.tiny_models import (
    batch_for,
    build,
    logits_of,
)


def test_the_default_start_is_nearly_open_but_has_a_gradient(gates):
    torch.testing.assert_close(gates.prob_open(), torch.full((TOTAL,), 0.98))
    gates.prob_open().sum().backward()
    assert (gates.log_alpha.grad > 0.01).all()


def test_by_block_names_the_blocks_and_slices_the_values(model):
    gates = gating.inject_gates(model)
    with torch.no_grad():
        gates.log_alpha.copy_(torch.linspace(-4, 4, TOTAL))
    values = gates.by_block()
    assert list(values) == [block.name for block in gating.find_attention_blocks(model)]
    assert torch.equal(torch.cat(list(values.values())), gates.values().detach())
    assert gates.num_open() == int((gates.values() > 0).sum()) < TOTAL


def test_log_alpha_is_one_parameter_in_the_state(bert):
    before = set(bert.state_dict())
    gating.inject_gates(bert)
    assert set(bert.state_dict()) - before == {"head_gates.log_alpha"}
    assert [name for name, _ in bert.named_parameters() if "gate" in name] == ["head_gates.log_alpha"]


def test_a_half_precision_model_keeps_its_gates_in_single_precision(bert, gates):
    bert.to(torch.bfloat16)
    assert bert.classifier.weight.dtype == torch.bfloat16
    assert gates.log_alpha.dtype == torch.float32
    bert.train()(**batch_for(bert)).logits.sum().backward()
    assert gates.log_alpha.grad.dtype == torch.float32
    assert logits_of(bert, batch_for(bert)).dtype == torch.bfloat16


def test_gates_follow_the_model_to_a_device(bert, gates):
    bert.to("meta")
    assert gates.log_alpha.device.type == "meta"
    assert isinstance(gates.log_alpha, nn.Parameter)


def test_fixed_values_end_with_the_block_also_after_an_error(gates):

    def fail():
        assert gates.num_open() == 0
        raise KeyError

    with pytest.raises(KeyError), gates.fixed_at(torch.zeros(TOTAL)):
        fail()
    assert gates.num_open() == TOTAL


def test_state_with_gates_can_be_loaded_into_another_gated_model():
    first, second = build("bert"), build("bert")
    gates = gating.inject_gates(first)
    gating.inject_gates(second)
    with torch.no_grad():
        gates.log_alpha.copy_(torch.linspace(-3, 3, TOTAL))
    second.load_state_dict(first.state_dict())
    assert torch.equal(second.head_gates.values(), gates.values())


def test_each_block_and_each_unit_has_a_row():
    model = build("bert")
    total = sum(weight.numel() for weight in model.parameters())
    gates = gating.inject_gates(model, units=["heads", "neurons"], group_size=16)
    gates.log_alpha.data.fill_(9.0)
    gates.log_alpha.data[:2] = -9.0
    gates.log_alpha.data[-1] = -9.0
    lines = gates.summary().splitlines()
    assert len(lines) == 1 + 6 + 2 + 1
    assert len({len(line) for line in lines[:-1]}) == 1
    assert "2 of 4 heads" in lines[1]
    assert "32 of 48 neurons" in lines[6]
    assert "10 of 12 heads" in lines[7]
    assert "128 of 144 neurons" in lines[8]
    kept = gates.values() > 0
    report = gating.finalize(model, gates, kept=kept)
    assert f"about {report.num_parameters:,} of {total:,} parameters" in lines[-1]
