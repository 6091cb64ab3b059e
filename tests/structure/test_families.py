"""Every family: a compact model computes and generates the same as the model with masked heads."""

from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import gating
from gating.discovery.find import search_blocks
from gating.errors import InputError
from gating.proof.outputs import forward_outputs, max_relative_difference
from gating.proof.probe import make_probe
from tests.support.family_models import FAMILIES, GPT2, IDS, VISION, ZOO, Family
from tests.support.fresh_process import auto_class_of, difference_elsewhere, save_for_elsewhere
from tests.support.masked_models import (
    TOLERANCE,
    check_generation,
    check_gradients,
    close_some,
    compact,
    generate_all,
    group_sizes,
    units_masked,
    ways_to_generate,
    without_gradient,
)
from tests.support.tiers import REPRESENTATIVES, tiered
from tests.support.tiny_models import assert_same_state, state_of
from tests.support.versions import OLDER, skip_older_fault

# Hybrid models have layers without gates.
pytestmark = [pytest.mark.usefixtures("quiet"), pytest.mark.filterwarnings("ignore:.*get no gates")]

IMPLEMENTATIONS = [
    (name, implementation) for name, family in ZOO.items() for implementation in family.implementations or (None,)
]
# Those with which each family goes from gates to a folder, and the others.
FIRST = [(name, next(iter(family.implementations), None)) for name, family in ZOO.items()]
OTHERS = [case for case in IMPLEMENTATIONS if case not in FIRST]
GENERATIVE = [name for name, family in FAMILIES.items() if family.generates]
# Attention without gates, by the class and a part of the reason.
UNGATED = {
    "kosmos_2": {"KosmosTextAttention": "inner_attn_ln normalizes across all heads"},
    "chameleon": {"ChameleonVQVAEEncoderAttnBlock": "no registered layout"},
    "groupvit": {"GroupViTAssignAttention": "no registered layout"},
}
# Classes without gates in older versions, where their layout is another one.
UNGATED_IN_OLDER = {
    *("ConditionalDetrAttention", "DeformableDetrMultiheadAttention", "RTDetrMultiheadAttention"),
    *("RTDetrV2MultiheadAttention", "XCLIPCrossAttention"),
}
# Differences in another process. Mixtures of experts order their sums by the memory layout of the experts' weights, and
# by the CPU; ViLT puts patches in a random order.
ELSEWHERE = {"gpt_oss": 2e-6, "vilt": 1e-5, "switch_transformers": 2e-7 if OLDER else 0.0}

# transformers 5.24 loads another embedding of the padding token of the dense model than it saves.
PADDING_CHANGES = ("youtu", "chinese_clip")


@pytest.mark.parametrize("name", tiered(ZOO))
def test_a_family_goes_from_gates_to_a_folder_that_loads_elsewhere(name: str, tmp_path: Path) -> None:
    """One model: all attention gated, open gates, two steps, partly open gates, removal, the folder."""
    family, folder = ZOO[name], tmp_path / "compact"
    model = family.build()
    batch, ways = family.make_batch(model), ways_to_generate(family, all_ways=name in REPRESENTATIVES)
    assert_all_attention_is_known_and_reached(name, model, batch)
    dense, unused = forward_outputs(model, batch), without_gradient(model, batch)
    units = ("heads", "neurons") if family.has_neurons else "heads"
    gates = gating.inject_gates(model, units=units, group_size=group_sizes(family)[2])
    assert_open_gates_change_nothing_and_learn(model, gates, batch, dense)
    train(model, batch)
    close_some(gates, 0)
    masked, tokens = forward_outputs(model, batch), generate_all(model, batch, ways)
    assert max_relative_difference(dense, masked) > 1e-4
    if "no cache" in tokens:
        assert tokens["greedy"] == tokens["no cache"]
    gating.finalize(model, gates, probe=batch)
    assert max_relative_difference(masked, forward_outputs(model, batch)) <= TOLERANCE
    assert generate_all(model, batch, ways) == tokens
    assert without_gradient(model, batch) <= unused
    try:
        save_for_elsewhere(model, folder, batch, probe=batch)
    except InputError as error:
        skip_older_fault(error)
    if name not in PADDING_CHANGES:
        assert_same_state(gating.load_compact(folder), state_of(model))
    difference = difference_elsewhere(folder, auto_class_of(model), is_fresh=name in REPRESENTATIVES)
    assert difference <= ELSEWHERE.get(name, 0.0)


def assert_all_attention_is_known_and_reached(name: str, model: PreTrainedModel, batch: dict[str, Tensor]) -> None:
    blocks, ungated = search_blocks(model, "heads")
    expected, reached = UNGATED.get(name, {}), set()
    assert expected.keys() <= {one.class_name for one in ungated}
    for one in ungated:
        if OLDER and one.class_name in UNGATED_IN_OLDER:
            continue
        # Outside of hybrids, whose other layers have reasons of their own.
        assert expected.get(one.class_name, "") in one.reason
        assert one.class_name in expected or "norm" in one.reason or "state-space" in one.reason, one
    handles = [block.hook_features(lambda _, name=block.name: reached.add(name)) for block in blocks]
    forward_outputs(model, batch)
    for handle in handles:
        handle.remove()
    assert reached == {block.name for block in blocks} != set()


def assert_open_gates_change_nothing_and_learn(
    model: PreTrainedModel, gates: gating.HeadGates, batch: dict[str, Tensor], dense: list[Tensor]
) -> None:
    values = torch.ones(gates.log_alpha.shape, requires_grad=True)
    with gates.fixed_at(values):
        assert max_relative_difference(dense, forward_outputs(model, batch)) <= 1e-6
        outputs = [one for one in forward_outputs(model, batch, with_gradients=True) if one.requires_grad]
    # Weighted, because norms make the plain sum of some outputs constant.
    generator = torch.Generator().manual_seed(0)
    sum((one.float() * torch.randn(one.shape, generator=generator)).sum() for one in outputs).backward()
    assert values.grad.isfinite().all()
    for gradients, kind in zip(values.grad.split(gates.block_sizes), gates.block_kinds, strict=True):
        # Neurons may be inactive, and tokens go to few experts.
        assert kind == "feed_forward" or gradients.all()


def train(model: PreTrainedModel, batch: dict[str, Tensor]) -> None:
    """Take two steps with sampled gates."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model.train()
    for step in range(2):
        torch.manual_seed(step)
        outputs = [value for value in model(**batch).values() if isinstance(value, Tensor) and value.requires_grad]
        optimizer.zero_grad()
        sum(value.float().pow(2).mean() for value in outputs).backward()
        optimizer.step()
    model.eval()


@pytest.mark.parametrize(("name", "implementation"), [*tiered(FIRST, mark="slow"), *tiered(OTHERS)])
def test_compact_equals_masked(name: str, implementation: str | None) -> None:
    family = ZOO[name]
    first = (name, implementation) in FIRST
    for seed in (1,) if first else (2, None):
        model, masked, probe = compact(family, seed, implementation=implementation, group_queries=first)
        assert max_relative_difference(masked, forward_outputs(model, probe)) <= TOLERANCE
        check_gradients(model, probe)


# Layers that lend keys and values, cached keys of images, and a replaced forward with two caches.
@pytest.mark.families
@pytest.mark.parametrize("name", ["gemma3n", "gemma4", "mllama", "trocr"])
def test_generates_the_same_without_heads_of_all_towers(name: str) -> None:
    for kept in ((), (0, 4)):
        model = ZOO[name].build()
        probe, blocks = make_probe(model), search_blocks(model, "heads")[0]
        with units_masked(blocks, {block.name: kept for block in blocks}):
            masked = generate_all(model, probe, {"greedy": {}})
        gating.prune_heads(model, {block.name: set(block.head_ids) - set(kept) for block in blocks})
        assert generate_all(model, probe, {"greedy": {}}) == masked
        fresh = type(model)(model.config)
        fresh.load_state_dict(model.state_dict())
        assert generate_all(fresh.eval(), probe, {"greedy": {}}) == masked


# Patterns are no parameters: thousands of tests take seconds to collect, also where none of them runs.
@pytest.mark.slow
@pytest.mark.parametrize(("name", "implementation"), IMPLEMENTATIONS)
def test_compact_equals_masked_on_more_patterns(name: str, implementation: str | None) -> None:
    for seed, group_queries in product((3, 4, 5, 6, 7, None), (False, True)):
        model, masked, probe = compact(ZOO[name], seed, implementation=implementation, group_queries=group_queries)
        difference = max_relative_difference(masked, forward_outputs(model, probe))
        assert difference <= TOLERANCE, (seed, group_queries)


@pytest.mark.slow
@pytest.mark.parametrize("name", GENERATIVE)
@pytest.mark.parametrize("group_queries", [False, True])
def test_generates_the_same_on_more_patterns(name: str, group_queries: bool) -> None:
    family = FAMILIES[name]
    for seed, implementation in product((1, 2, 3, 4, 5, None), family.implementations):
        check_generation(family, seed, implementation=implementation, group_queries=group_queries)


def test_removing_twice_keeps_the_original_numbers() -> None:
    for name in ("falcon-rw-alibi", "t5", "mpnet", "swin", "gpt_neox", "phi3", "cohere"):
        once, twice = FAMILIES[name].build(), FAMILIES[name].build()
        blocks = {block.name: block for block in gating.find_attention_blocks(once)}
        first = {name: [0, 1] if block.num_heads > 2 else [0] for name, block in blocks.items()}
        second = {name: [block.num_heads - 1] for name, block in blocks.items() if block.num_heads > 2}
        second[next(iter(blocks))] = range(next(iter(blocks.values())).num_heads)
        gating.prune_heads(once, {name: {*first[name], *second.get(name, [])} for name in blocks})
        gating.prune_heads(twice, first)
        gating.prune_heads(twice, second)
        probe = make_probe(once)
        assert [block.head_ids for block in gating.find_attention_blocks(once)] == [
            block.head_ids for block in gating.find_attention_blocks(twice)
        ]
        assert max_relative_difference(forward_outputs(once, probe), forward_outputs(twice, probe)) <= TOLERANCE
        assert once.config.to_dict()["head_gating"]["units"].keys() == blocks.keys()


def test_the_vocabulary_of_a_compact_model_may_grow(tmp_path: Path) -> None:
    for name in ("bert", "llama", "t5"):
        model = FAMILIES[name].build()
        gating.prune_heads(model, {block.name: block.head_ids[::2] for block in gating.find_attention_blocks(model)})
        probe, size = make_probe(model), model.get_input_embeddings().num_embeddings
        expected = forward_outputs(model, probe)
        model.resize_token_embeddings(size + 10, mean_resizing=False)
        outputs = forward_outputs(model, probe)
        assert max_relative_difference(expected, [one[..., :size] for one in outputs]) <= TOLERANCE
        loaded = gating.load_compact(gating.save_compact(model, tmp_path / name))
        assert max_relative_difference(outputs, forward_outputs(loaded, probe)) == 0.0


@pytest.mark.parametrize("name", ["llama", "t5", "bart", "albert", "mpnet", "gpt2", "bert-decoder", "beit"])
def test_attentions_stay_aligned_with_layers(name: str) -> None:
    model, _, probe = compact(FAMILIES[name], 0, implementation="eager")
    heads: dict[str, list[int]] = {}
    for block in gating.find_attention_blocks(model):
        kind = "cross" if block.is_cross_attention else "decoder" if block.name.startswith("decoder") else "other"
        heads.setdefault(kind, []).append(len(block.head_slots))
    outputs = model(**probe, output_attentions=True)
    for kind, key in (("cross", "cross_attentions"), ("decoder", "decoder_attentions"), ("other", "attentions")):
        if kind in heads and outputs.get(key) is not None:
            counts = [attention.shape[1] for attention in outputs[key]]
            expected = heads[kind]
            if name == "albert":
                expected = [expected[0], expected[0], expected[1], expected[1]]
            assert counts == expected


def test_whisper_alignment_heads_follow_their_heads() -> None:
    model = FAMILIES["whisper"].build()
    model.generation_config.alignment_heads = [[0, 3], [1, 0], [2, 2], [2, 3]]
    gating.prune_heads(
        model,
        {
            "decoder.layers.0.encoder_attn": [0, 1],
            "decoder.layers.1.encoder_attn": [0],
            "decoder.layers.2.encoder_attn": [0],
            "decoder.layers.2.self_attn": [2],
        },
    )
    assert model.generation_config.alignment_heads == [[0, 1], [2, 1], [2, 2]]
    gating.prune_heads(model, {"decoder.layers.2.encoder_attn": [1, 2]})
    assert model.generation_config.alignment_heads == [[0, 1], [2, 0]]
    gating.prune_heads(model, {f"decoder.layers.{layer}.encoder_attn": range(4) for layer in range(3)})
    assert not hasattr(model.generation_config, "alignment_heads")


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
