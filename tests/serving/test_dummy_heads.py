"""Blocks without heads get a head that does nothing, for runtimes that need one in every layer."""

import pytest
import torch

import gating
from gating.loader.record import describe
from gating.proof.outputs import forward_outputs, max_relative_difference
from gating.proof.probe import make_probe
from gating.serving.copies import with_dummy_heads
from tests.support.family_models import FAMILIES, GPT2, GROUPED, IDS, Family
from tests.support.fresh_process import answers_of_fresh_process, outputs_of
from tests.support.tiers import first_of
from tests.support.tiny_models import assert_same_state, state_of

DECODERS = {
    "llama": FAMILIES["llama"],
    "mistral": Family("MistralForCausalLM", "MistralConfig", GROUPED),
    "qwen2": Family("Qwen2ForCausalLM", "Qwen2Config", {**GROUPED, "hidden_size": 64}),
    "qwen3": Family("Qwen3ForCausalLM", "Qwen3Config", GROUPED),
    "gpt2": Family("GPT2LMHeadModel", "GPT2Config", {**GPT2, **IDS, "n_inner": None}),
}
TOKENS = torch.tensor([[5, 6, 7, 8, 9], [0, 0, 11, 12, 13]])
BATCH = {"input_ids": TOKENS, "attention_mask": (TOKENS != 0).long()}


def emptied(name):
    """Return a decoder whose middle layer has no head, with uneven heads and neurons elsewhere."""
    model = DECODERS[name].build()
    heads = gating.find_attention_blocks(model)[0].num_heads
    gating.prune_heads(model, {0: [0], 1: range(heads)})
    gating.prune_neurons(model, {0: [1], 2: [0, 2]}, group_size=16)
    return model.eval()


def outputs(model):
    with torch.no_grad():
        logits = model(**BATCH).logits
        tokens = model.generate(**BATCH, max_new_tokens=8, min_new_tokens=8, do_sample=False)
        cacheless = model.generate(**BATCH, max_new_tokens=8, min_new_tokens=8, do_sample=False, use_cache=False)
    return logits, tokens, cacheless


@pytest.fixture(scope="module")
def dummy(tmp_path_factory):
    """By name: the emptied model, its copy with a dummy head, and the folder of that."""
    place, made = tmp_path_factory.mktemp("dummy"), {}
    for name in DECODERS:
        model = emptied(name)
        copy = with_dummy_heads(model)
        made[name] = (model, copy, gating.save_compact(copy, place / name))
    return made


@pytest.mark.parametrize("name", first_of(DECODERS))
def test_outputs_and_generated_texts_are_equal(name, dummy):
    model, copy, folder = dummy[name]
    for expected, actual, loaded in zip(
        outputs(model), outputs(copy), outputs(gating.load_compact(folder)), strict=True
    ):
        torch.testing.assert_close(actual, expected)
        torch.testing.assert_close(loaded, actual)


def test_plain_transformers_loads_it(dummy):
    jobs = {
        name: {"folder": str(folder), "auto_class": "AutoModelForCausalLM", "batch": BATCH}
        for name, (_, _, folder) in dummy.items()
    }
    answers = answers_of_fresh_process(jobs, with_package=False)
    for name, (model, _, _) in dummy.items():
        torch.testing.assert_close(outputs_of(answers[name])[0], outputs(model)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", first_of(DECODERS))
def test_every_layer_has_a_key_value_head_and_no_removed_head_is_counted(name, dummy):
    model, copy, _ = dummy[name]
    before, after = gating.find_attention_blocks(model)[1], gating.find_attention_blocks(copy)[1]
    assert (before.num_heads, before.num_key_value_heads) == (0, 0)
    assert (after.num_heads, after.num_key_value_heads, after.head_slots) == (0, 1, (0,))
    notes = describe(copy)["units"][after.name]
    assert (notes["head_ids"], notes["head_slots"]) == ([], [0])


def test_the_model_stays_as_it_is_and_other_tensors_are_shared():
    model = emptied("llama").train()
    model.model.norm.weight.requires_grad_(False)
    state, record = state_of(model), dict(model.config.head_gating)
    copy = with_dummy_heads(model)
    assert model.training
    assert not copy.training
    assert model.config.head_gating == record
    assert_same_state(model, state)
    own = dict(model.named_parameters())
    new = [name for name, parameter in copy.named_parameters() if parameter is not own.get(name)]
    assert new == [f"model.layers.1.self_attn.{kind}_proj.weight" for kind in "qkvo"]
    assert not any(parameter.any() for name, parameter in copy.named_parameters() if name in new)
    assert with_dummy_heads(copy) is copy


def test_some_blocks_by_name_and_no_others():
    model = emptied("llama")
    gating.prune_heads(model, {2: range(8)})
    copy = with_dummy_heads(model, ["layers.2.self_attn"])
    assert [block.num_key_value_heads for block in gating.find_attention_blocks(copy)] == [4, 0, 1]


@pytest.mark.parametrize("name", ["bart", "gpt_oss", "gptj", "deepseek_v3"])
def test_other_families_keep_what_else_a_block_has(name):
    model = FAMILIES[name].build().to(torch.bfloat16).eval()
    block = gating.find_attention_blocks(model)[0]
    gating.prune_heads(model, {block.name: block.head_ids})
    copy, probe = with_dummy_heads(model), make_probe(model)
    assert copy is not model
    assert {parameter.dtype for parameter in copy.parameters()} == {torch.bfloat16}
    assert max_relative_difference(forward_outputs(model, probe), forward_outputs(copy, probe)) < 1e-6


def test_training_does_not_revive_a_silent_head():
    copy = with_dummy_heads(emptied("qwen3"))
    copy(**BATCH, labels=TOKENS).loss.backward()
    assert not copy.model.layers[1].self_attn.o_proj.weight.grad.any()
