"""Attention classes that no row describes, taken by their structure."""

import pytest
import torch
from family_models import GPT2, GROUPED, IDS, TEXT, Family
from torch import nn

import gating
from gating.heads.probe import forward_outputs, make_probe, max_relative_difference
from gating.heads.record import RECORD_KEY

UNKNOWN = {
    "stablelm": Family("StableLmForCausalLM", "StableLmConfig", GROUPED),
    "codegen": Family("CodeGenForCausalLM", "CodeGenConfig", {**GPT2, **IDS, "n_head": 8, "rotary_dim": 4}, ("eager",)),
    "dpt": Family(
        "DPTModel",
        "DPTConfig",
        {
            "hidden_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "intermediate_size": 48,
            "image_size": 16,
            "patch_size": 8,
            "backbone_out_indices": [0, 1, 2, 2],
        },
    ),
    "roformer": Family("RoFormerForSequenceClassification", "RoFormerConfig", TEXT, ("eager",)),
}


@pytest.mark.parametrize("name", ["stablelm", "dpt", "roformer"])
def test_unknown_classes_are_found_by_structure(name, tmp_path):
    model = UNKNOWN[name].build()
    with pytest.raises(ValueError, match="discover=True"):
        gating.find_attention_blocks(model)
    probe = make_probe(model)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    blocks = gating.find_attention_blocks(model, discover=True)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    gates = gating.inject_gates(model, discover=True)
    with torch.no_grad():
        gates.log_alpha.copy_(torch.where(torch.arange(len(gates.log_alpha)) % 3 == 0, -9.0, 9.0))
    report = gating.finalize(model, gates)
    assert report.num_heads < sum(block.num_heads for block in blocks)
    assert report.max_difference < 1e-5
    assert len(model.config.to_dict()[RECORD_KEY]["specs"]) == 1
    gating.save_compact(model, tmp_path / "compact")
    again = gating.load_compact(tmp_path / "compact")
    assert max_relative_difference(forward_outputs(model, probe), forward_outputs(again, probe)) == 0


def test_pruning_with_discovery_is_checked():
    model = UNKNOWN["stablelm"].build()
    report = gating.prune_heads(model, {0: [0, 3], 2: range(8)}, discover=True)
    assert report.num_heads == 14
    assert len(gating.find_attention_blocks(model)) == 3


class Reversed(nn.Linear):
    """A projection whose output is not laid out head by head from the first to the last."""

    def forward(self, inputs):
        return super().forward(inputs).flip(-1)


def test_what_is_not_understood_is_put_back():
    model = UNKNOWN["stablelm"].build()
    attention = model.model.layers[1].self_attn
    for name in ("q_proj", "k_proj", "v_proj"):
        getattr(attention, name).__class__ = Reversed
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"StableLmAttention.*outputs differ .*Nothing was changed"):
        gating.prune_heads(model, {0: [0]}, discover=True)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(hasattr(module, "attention_spec") for module in model.modules())
    assert not any(hasattr(module, "head_ids") for module in model.modules())
