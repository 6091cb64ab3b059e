"""The tests of head pruning that transformers had until version 4, for ``gating.prune_heads`` on every family.

Version 5 has neither ``prune_heads`` nor these tests. They keep their names, so that they can be looked up. Families
beyond the representatives, which have every layout, are among the slow tests.
"""

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import gating
from gating.loader.checksums import RECORD_KEY
from gating.loader.saving import compact_class
from gating.proof.outputs import forward_outputs, max_relative_difference
from gating.structure.attention import AttentionBlock
from tests.support.family_models import FAMILIES
from tests.support.tiers import tiered

# Some families have layers without gates.
pytestmark = pytest.mark.filterwarnings("ignore:.*get no gates")

TOLERANCE = 1e-5
Request = dict[str, list[int]]

# Positions of the blocks whose attentions are among the outputs, where these are not all blocks once each.
RETURNED = {
    "albert": (0, 0, 1, 1),  # two layers share one block
    "albert-1group": (0, 1, 0, 1, 0, 1),
    "swin": (1, 3),  # the last block of each stage
    "blip": (0, 1),  # the vision model alone
    "siglip": (0, 1, 2, 3),  # all but the one that pools
    **dict.fromkeys(("qwen3_next", "qwen3_5", "qwen3_5_moe"), (0, 2, 3)),  # linear attention returns none
}
# Heads of linear attention, which stay, by the positions of their states among the returned attentions.
LINEAR_ATTENTION = {"minimax": {1: 8}}
WITHOUT_TOKENS = {
    **dict.fromkeys(("vit", "deit", "dinov2", "dinov3", "beit", "swin", "vit_mae"), "Its inputs are images."),
    **dict.fromkeys(("wav2vec2", "hubert"), "Its inputs are sounds."),
    "clip": "transformers cannot find its input embeddings.",
    "t5gemma": "transformers resizes those of its encoder without their size in the configuration.",
}
KINDS = ("encoder", "decoder", "self", "cross")
NAMES = tiered(FAMILIES, mark="slow")


def build(name: str) -> tuple[PreTrainedModel, dict[str, Tensor], list[AttentionBlock]]:
    """Build a model with eager attention, which returns probabilities; return it with a batch and its blocks."""
    model = FAMILIES[name].build("eager")
    return model, FAMILIES[name].make_batch(model), gating.find_attention_blocks(model)


def from_both_ends(blocks: Sequence[AttentionBlock]) -> Request:
    """Request to keep only head 0 of the first block, and all heads but head 0 of the last one."""
    return {blocks[0].name: list(blocks[0].head_ids[1:]), blocks[-1].name: [0]}


def from_every_block(blocks: Sequence[AttentionBlock]) -> Request:
    """Request to keep, block after block, only head 0, no head, all heads but head 0, and so on."""
    slices = (slice(1, None), slice(None), slice(1))
    return {block.name: list(block.head_ids[slices[index % 3]]) for index, block in enumerate(blocks)}


def kept_after(blocks: Sequence[AttentionBlock], *requests: Request) -> dict[str, list[int]]:
    """Return the heads of each block that no request removes, by the numbers of the original model."""
    removed = {block.name: {head for request in requests for head in request.get(block.name, ())} for block in blocks}
    return {block.name: [head for head in block.head_ids if head not in removed[block.name]] for block in blocks}


def expected_widths(name: str, blocks: Sequence[AttentionBlock], kept: Mapping[str, Sequence[int]]) -> list[int]:
    """Return the number of heads in each attention that a model returns.

    Args:
        name: The family.
        blocks: The blocks of the original model.
        kept: The heads of each block that are kept.
    """
    widths = []
    for block in sorted(blocks, key=lambda block: KINDS.index(block.kind)):
        group_size = block.num_heads // block.num_key_value_heads
        groups = [head // group_size for head in kept[block.name]]
        # Smaller groups of queries are padded, and some classes keep a head without effect.
        widths.append(len(set(groups)) * max(map(groups.count, groups), default=0) or int(not block.can_be_emptied))
    widths = [widths[position] for position in RETURNED.get(name, range(len(widths)))]
    for position, num_heads in LINEAR_ATTENTION.get(name, {}).items():
        widths.insert(position, num_heads)
    return widths


def returned_widths(model: PreTrainedModel, probe: Mapping[str, Tensor]) -> list[int]:
    """Return the number of heads in each attention that a model returns."""
    with torch.no_grad():
        outputs = model(**probe, output_attentions=True)
    widths = []
    for part in [outputs[key] for key in outputs if key.endswith("_model_output")] or [outputs]:
        for key in ("encoder_attentions", "decoder_attentions", "attentions", "cross_attentions"):
            for attention in part.get(key) or ():
                assert attention.isfinite().all()
                widths.append(attention.shape[1])
    return widths


def kept_in_record(model: PreTrainedModel) -> dict[str, list[int]]:
    record = json.loads(model.config.to_json_string(use_diff=False))[RECORD_KEY]
    return {name: notes["head_ids"] for name, notes in record["units"].items() if "head_ids" in notes}


def save_and_load(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    model.save_pretrained(folder)
    return type(model).from_pretrained(folder, attn_implementation="eager")


@pytest.mark.parametrize("request_from", [from_both_ends, from_every_block])
@pytest.mark.parametrize("name", NAMES)
def test_head_pruning(name: str, request_from: Callable[[Sequence[AttentionBlock]], Request]) -> None:
    model, probe, blocks = build(name)
    assert returned_widths(model, probe) == expected_widths(name, blocks, kept_after(blocks))
    request = request_from(blocks)
    kept = kept_after(blocks, request)
    report = gating.prune_heads(model, request)
    assert {block: list(heads) for block, heads in report.kept_heads.items()} == kept
    assert returned_widths(model, probe) == expected_widths(name, blocks, kept)


@pytest.mark.families
@pytest.mark.parametrize("name", NAMES)
def test_head_pruning_save_load_from_pretrained(name: str, tmp_path: Path) -> None:
    model, probe, blocks = build(name)
    request = from_every_block(blocks)
    gating.prune_heads(model, request)
    loaded = save_and_load(model, tmp_path)
    assert kept_in_record(loaded) == kept_after(blocks, request)
    assert returned_widths(loaded, probe) == expected_widths(name, blocks, kept_after(blocks, request))
    assert max_relative_difference(forward_outputs(model, probe), forward_outputs(loaded, probe)) == 0.0


@pytest.mark.families
@pytest.mark.parametrize("name", NAMES)
def test_head_pruning_save_load_from_config_init(name: str, tmp_path: Path) -> None:
    pruned, probe, blocks = build(name)
    base = type(pruned)
    request = from_every_block(blocks)
    gating.prune_heads(pruned, request)
    pruned.config.save_pretrained(tmp_path)
    config = type(pruned.config).from_pretrained(tmp_path)
    model = compact_class(base)._from_config(config, attn_implementation="eager").eval()
    assert kept_in_record(model) == kept_after(blocks, request)
    assert returned_widths(model, probe) == expected_widths(name, blocks, kept_after(blocks, request))
    model.load_state_dict(pruned.state_dict())
    assert max_relative_difference(forward_outputs(pruned, probe), forward_outputs(model, probe)) == 0.0


@pytest.mark.families
@pytest.mark.parametrize("name", NAMES)
def test_head_pruning_integration(name: str, tmp_path: Path) -> None:
    model, probe, blocks = build(name)
    at_once = copy.deepcopy(model)
    first, second, last = blocks[0], blocks[1], blocks[-1]
    requests: list[Request] = [
        {second.name: [head for head in (1, 2) if head in second.head_ids]},
        {first.name: [0], second.name: [1], last.name: list(last.head_ids[:-1])},
        {first.name: [0, 1], second.name: list(second.head_ids)},
    ]
    for step, request in enumerate(requests):
        gating.prune_heads(model, request)
        if step == 0:
            model = save_and_load(model, tmp_path / "pretrained")
        elif step == 1:
            model = gating.load_compact(gating.save_compact(model, tmp_path / "compact", verify=False))
            model.set_attn_implementation("eager")
        kept = kept_after(blocks, *requests[: step + 1])
        assert {**kept, **kept_in_record(model)} == kept
        assert returned_widths(model, probe) == expected_widths(name, blocks, kept)
    gating.prune_heads(at_once, {block.name: set(block.head_ids) - set(kept[block.name]) for block in blocks})
    assert max_relative_difference(forward_outputs(at_once, probe), forward_outputs(model, probe)) <= TOLERANCE


@pytest.mark.parametrize("name", NAMES)
def test_headmasking(name: str) -> None:
    model, probe, blocks = build(name)
    request = {blocks[0].name: [0], blocks[-1].name: list(blocks[-1].head_ids[:-1])}
    mask = torch.tensor([float(head not in request.get(block.name, ())) for block in blocks for head in block.head_ids])
    mask.requires_grad_()
    noise = torch.zeros(())
    # Hooks of a projection run in the order of registration: the gates are to see the noise.
    handles = [block.hook_features(_noise_in(block, request.get(block.name, []), noise)) for block in blocks]
    gates = gating.inject_gates(model, group_queries=False)
    with gates.fixed_at(mask):
        attached = forward_outputs(model, probe, with_gradients=True)
        masked = [output.detach() for output in attached]
        noise.fill_(1.0)
        assert max_relative_difference(masked, forward_outputs(model, probe)) == 0.0
    sum(output.pow(2).mean() for output in attached if output.requires_grad).backward()
    assert mask.grad is not None
    assert mask.grad.isfinite().all()
    assert mask.grad[mask > 0].all()
    for handle in handles:
        handle.remove()
    gates.remove()
    gating.prune_heads(model, request)
    assert max_relative_difference(masked, forward_outputs(model, probe)) <= TOLERANCE


def _noise_in(block: AttentionBlock, heads: Sequence[int], noise: Tensor) -> Callable[[Tensor], Tensor]:
    is_masked = torch.tensor([head in heads for head in block.head_ids]).repeat_interleave(block.head_dim)
    return lambda features: features + noise * is_masked


@pytest.mark.families
@pytest.mark.parametrize("name", [one for one in NAMES if one.values[0] not in WITHOUT_TOKENS])
def test_resize_tokens_embeddings(name: str, tmp_path: Path) -> None:
    model, probe, blocks = build(name)
    request = from_every_block(blocks)
    gating.prune_heads(model, request)
    size = model.get_input_embeddings().num_embeddings
    probe = {key: value.clamp(max=size - 11) if key.endswith("input_ids") else value for key, value in probe.items()}
    expected = forward_outputs(model, probe)
    for new_size in (size + 10, size - 10):
        model.resize_token_embeddings(new_size, mean_resizing=False)
        assert model.get_input_embeddings().num_embeddings == new_size
        common = min(size, new_size)
        outputs = forward_outputs(model, probe)
        assert max(output.shape[-1] for output in outputs) <= new_size
        assert max_relative_difference(_first(expected, common), _first(outputs, common)) <= TOLERANCE
        assert kept_in_record(model) == kept_after(blocks, request)
    loaded = save_and_load(model, tmp_path)
    assert returned_widths(loaded, probe) == expected_widths(name, blocks, kept_after(blocks, request))
    assert max_relative_difference(outputs, forward_outputs(loaded, probe)) == 0.0
    more = {blocks[0].name: [0], blocks[-1].name: [blocks[-1].num_heads - 1]}
    assert gating.prune_heads(loaded, more).num_heads == sum(map(len, kept_after(blocks, request, more).values()))
    assert all(output.isfinite().all() for output in forward_outputs(loaded, probe))


def _first(outputs: Sequence[Tensor], size: int) -> list[Tensor]:
    """Return the outputs for the first tokens of the vocabulary; other outputs have fewer features."""
    return [output[..., :size] for output in outputs]
