"""Attention classes without a spec are discovered by their structure."""

import pytest
import torch
from torch import nn
from transformers import (
    BigBirdConfig,
    BigBirdForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
    StableLmConfig,
)
from transformers.models.stablelm.modeling_stablelm import StableLmAttention, StableLmRotaryEmbedding

import gating
from gating.loader.modeling import RECORD_KEY
from gating.proof.outputs import forward_outputs, max_relative_difference
from gating.proof.probe import make_probe
from gating.structure.layers import iter_blocks
from tests.support.family_models import FAMILIES, GROUPED, TEXT, VISION, Family


@pytest.fixture(autouse=True)
def _unknown(forget):
    """Remove the rows of the classes that are to be discovered."""
    forget("StableLmAttention", "RoFormerSelfAttention")


UNKNOWN = {
    "stablelm": Family("StableLmForCausalLM", "StableLmConfig", GROUPED),
    "dpt": Family("DPTModel", "DPTConfig", {**VISION, "backbone_out_indices": [0, 1, 2, 2]}),
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
    units = model.config.to_dict()[RECORD_KEY]["units"]
    assert all("attention_spec" in units[block.name] for block in blocks)
    gating.save_compact(model, tmp_path / "compact")
    again = gating.load_compact(tmp_path / "compact")
    assert max_relative_difference(forward_outputs(model, probe), forward_outputs(again, probe)) == 0


def test_layouts_of_discovery_are_guessed_and_those_of_records_are_not(tmp_path):
    found = gating.find_attention_blocks(UNKNOWN["stablelm"].build(), discover=True)
    assert all(block.is_guessed for block in found)
    model = FAMILIES["bert"].build()
    gating.prune_heads(model, {0: range(4), 1: [0]})
    gating.prune_neurons(model, {0: range(6), 1: [0]}, group_size=8)
    gating.save_compact(model, tmp_path / "compact")
    for each in (model, gating.load_compact(tmp_path / "compact")):
        blocks = list(iter_blocks(each, "heads", "neurons", group_size=None))
        assert len(blocks) == 6
        assert not any(block.is_guessed for block in blocks)


def test_a_wrong_output_of_a_loaded_model_is_not_blamed_on_discovery(tmp_path):
    model = FAMILIES["llama"].build()
    gating.prune_heads(model, {0: [0, 1]})
    gating.save_compact(model, tmp_path / "compact")
    again = gating.load_compact(tmp_path / "compact")
    for name in ("q_proj", "k_proj", "v_proj"):
        getattr(again.model.layers[1].self_attn, name).__class__ = Reversed
    with pytest.raises(ValueError, match="registry"):
        gating.prune_heads(again, {1: [0, 1]}, probe=make_probe(again))


def test_pruning_with_discovery_is_checked():
    model = UNKNOWN["stablelm"].build()
    report = gating.prune_heads(model, {0: [0, 3], 2: range(8)}, discover=True)
    assert report.num_heads == 14
    assert len(gating.find_attention_blocks(model)) == 3


class Reversed(nn.Linear):
    """A projection whose output is not laid out head by head from the first to the last."""

    def forward(self, inputs):
        return super().forward(inputs).flip(-1)


def test_a_failed_discovery_restores_the_model():
    model = UNKNOWN["stablelm"].build()
    attention = model.model.layers[1].self_attn
    for name in ("q_proj", "k_proj", "v_proj"):
        getattr(attention, name).__class__ = Reversed
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match="discovery guessed"):
        gating.prune_heads(model, {0: [0]}, discover=True)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(hasattr(module, "attention_spec") for module in model.modules())
    assert not any(hasattr(module, "head_ids") for module in model.modules())


@pytest.mark.parametrize("attention_type", ["block_sparse", "original_full"])
def test_attention_that_a_short_input_replaces_is_refused(attention_type):
    model = BigBirdForSequenceClassification(BigBirdConfig(**TEXT, attention_type=attention_type, block_size=4)).eval()
    if attention_type == "original_full":
        assert len(gating.find_attention_blocks(model, discover=True)) == 3
        return
    for _ in range(2):
        with pytest.raises(ValueError, match="attention_type='original_full'"):
            gating.find_attention_blocks(model, discover=True)
        with torch.no_grad():
            model(torch.randint(3, 99, (1, 8)))


class Speechless(PreTrainedModel):
    """A model with an argument that no input can be made for, and without a spec."""

    config_class = PreTrainedConfig
    main_input_name = "vectors"

    def __init__(self, config):
        super().__init__(config)
        self.attention = StableLmAttention(StableLmConfig(**GROUPED, attn_implementation="eager"), layer_idx=0)
        self.rotary = StableLmRotaryEmbedding(StableLmConfig(**GROUPED))

    def forward(self, vectors):
        positions = torch.arange(vectors.shape[1])[None]
        embeddings = self.rotary(vectors, positions)
        return {"out": self.attention(vectors, None, position_embeddings=embeddings)[0]}


def test_a_model_that_no_probe_can_be_made_for_takes_one():
    model = Speechless(PreTrainedConfig()).eval()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    for function in (
        gating.find_attention_blocks,
        gating.inject_gates,
        lambda m, **o: gating.prune_heads(m, {0: [0]}, **o),
    ):
        with pytest.raises(ValueError, match=r"pass probe=\{argument"):
            function(model, discover=True)
        with pytest.raises(ValueError, match="pass probe="):
            function(model, discover=True, probe={"vectors": torch.zeros(2, 3, 5)})
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    probe = {"vectors": torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(0))}
    gates = gating.inject_gates(model, discover=True, probe=probe)
    gates.remove()
    assert gating.prune_heads(model, {0: [0, 1]}, discover=True, probe=probe).num_heads == 6
