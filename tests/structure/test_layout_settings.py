"""Layouts that depend on settings of a family other than its default ones."""

import pytest

import gating
from gating.proof.outputs import forward_outputs, max_relative_difference
from gating.proof.probe import make_probe
from tests.support.family_models import GPT2, IDS, VISION, Family
from tests.support.masked_models import units_masked

BIASES = {"use_relative_position_bias": True}
SHARED_BIASES = {"use_shared_relative_position_bias": True}


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize(
    ("name", "head", "arguments"),
    [
        ("GPTBigCode", "ForCausalLM", {**GPT2, **IDS, "multi_query": False}),
        ("Data2VecVision", "ForImageClassification", {**VISION, **BIASES}),
        ("Data2VecVision", "ForImageClassification", {**VISION, **SHARED_BIASES}),
        ("Data2VecVision", "ForImageClassification", {**VISION, **BIASES, **SHARED_BIASES}),
    ],
)
def test_a_model_without_heads_computes_what_the_masked_one_does(name, head, arguments, implementation):
    model = Family(f"{name}{head}", f"{name}Config", arguments).build(implementation)
    blocks, probe = gating.find_attention_blocks(model), make_probe(model)
    kept = {block.name: set(block.head_ids[1:3]) for block in blocks}
    with units_masked(blocks, kept):
        expected = forward_outputs(model, probe)
    gating.prune_heads(model, {block.name: set(block.head_ids) - kept[block.name] for block in blocks})
    assert max_relative_difference(expected, forward_outputs(model, probe)) < 1e-5
