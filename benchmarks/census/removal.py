"""Heads and neurons of one tiny model, removed in random patterns, and the difference from the masked model."""

import random
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

import gating
from benchmarks.census.models import looks_like_attention
from gating.discovery.find import search_blocks
from gating.discovery.ungated import UngatedModules
from gating.proof.masked import factors_of, features_scaled
from gating.proof.outputs import forward_outputs, max_relative_difference
from gating.structure.attention import AttentionBlock
from gating.structure.blocks import Block

# Largest relative difference of masked and compact outputs that another order of summation explains.
EXACT = 1e-4
# Masking a block has to change the outputs by more, so that a mistake in it would show.
_EFFECT = 10 * EXACT
_PATTERNS = 3
_GROUP_SIZE = 16
BATCH = "batch.pt"

Row = dict[str, Any]


@dataclass(frozen=True)
class Tiny:
    """A tiny model with what it is fed and how its heads are found.

    Attributes:
        model: The model, which stays as it is.
        batch: The inputs by argument name.
        outputs: The outputs of the dense model for them.
        discover: Whether layouts are found by discovery, beside those of the registry.
    """

    model: PreTrainedModel
    batch: Mapping[str, Any]
    outputs: Sequence[Tensor]
    discover: bool = False

    @property
    def probe(self) -> Mapping[str, Any] | None:
        """Return the batch where discovery needs it."""
        return self.batch if self.discover else None


def examine_heads(tiny: Tiny) -> Row:
    """Remove heads in random patterns, and compare outputs and generated tokens with those of the masked model."""
    blocks, ungated = search_blocks(tiny.model, "heads", discover=tiny.discover, probe=tiny.probe)
    row: Row = {
        "num_blocks": len(blocks),
        "num_heads": sum(block.num_heads for block in blocks),
        "classes": sorted({type(block.module).__name__ for block in blocks}),
        "towers": sorted({block.tower for block in blocks}),
        "ungated": _described(ungated),
    }
    if unnamed := _unnamed(tiny.model, blocks, [name for one in ungated for name in one.names]):
        return {**row, "outcome": "wrong", "reason": f"no word about {', '.join(unnamed)}"}
    unproven = _without_effect(tiny, blocks)
    row["unproven"] = _counted(unproven)
    if len(unproven) == len(blocks):
        return {**row, "outcome": "unproven", "reason": "masking all heads of any block does not change the outputs"}
    compact = partial(_without_heads, tiny)
    row["difference"] = max(_difference(tiny, blocks, _pattern(blocks, seed), compact) for seed in range(_PATTERNS))
    if row["difference"] > EXACT:
        return {**row, "outcome": "wrong", "reason": f"compact outputs differ by {row['difference']:.1e}"}
    row["generates"] = _generates_the_same(tiny, blocks)
    if row["generates"] is False:
        return {**row, "outcome": "wrong", "reason": "other tokens are generated"}
    return {**row, "outcome": "exact"}


def examine_neurons(tiny: Tiny) -> Row:
    """Remove groups of neurons in random patterns, and compare outputs with those of the masked model."""
    blocks, ungated = search_blocks(tiny.model, "neurons", group_size=_GROUP_SIZE, discover=True, probe=tiny.batch)
    unproven = _without_effect(tiny, blocks)
    row: Row = {"num_blocks": len(blocks), "ungated": _described(ungated), "unproven": _counted(unproven)}
    if len(unproven) == len(blocks):
        return {**row, "outcome": "unproven", "reason": "masking all neurons of any block does not change the outputs"}
    compact = partial(_without_neurons, tiny)
    row["difference"] = max(_difference(tiny, blocks, _pattern(blocks, seed), compact) for seed in range(2))
    if row["difference"] > EXACT:
        return {**row, "outcome": "wrong", "reason": f"compact outputs differ by {row['difference']:.1e}"}
    return {**row, "outcome": "exact"}


def save(tiny: Tiny, folder: Path, *, neurons: bool) -> Row:
    """Save a compact model without some heads, and neurons if asked for, with a batch and its outputs.

    Another process loads it and compares.
    """
    blocks, _ = search_blocks(tiny.model, "heads", discover=tiny.discover, probe=tiny.probe)
    compact = _without_heads(tiny, blocks, _pattern(blocks, 0))
    if neurons:
        wide = gating.find_feed_forward_blocks(compact, group_size=_GROUP_SIZE, discover=True, probe=tiny.batch)
        gating.prune_neurons(compact, _removed(wide, _pattern(wide, 0)), group_size=_GROUP_SIZE, probe=tiny.batch)
    folder.mkdir(parents=True)
    gating.save_compact(compact, folder / "model", probe=tiny.batch)
    torch.save({"batch": dict(tiny.batch), "outputs": forward_outputs(compact, tiny.batch)}, folder / BATCH)
    return {"outcome": "exact", "neurons": neurons}


def _described(ungated: Sequence[UngatedModules]) -> list[Row]:
    return [{"class": one.class_name, "number": len(one.names), "reason": one.reason} for one in ungated]


def _counted(blocks: Sequence[Block]) -> dict[str, int]:
    """Return the number of blocks of each class."""
    names = [type(block.module).__name__ for block in blocks]
    return {name: names.count(name) for name in sorted(set(names))}


def _unnamed(model: PreTrainedModel, blocks: Sequence[AttentionBlock], named: Sequence[str]) -> list[str]:
    """Return classes named attention that hold no gated or named module and are inside of none."""
    modules = dict(model.named_modules())
    prefix = f"{model.base_model_prefix}."
    known = {block.module for block in blocks}
    known |= {modules[name if name in modules else prefix + name] for name in named}
    inside = {part for module in known for part in module.modules()}
    return sorted(
        {
            type(module).__name__
            for module in modules.values()
            if looks_like_attention(module)
            and not isinstance(module, PreTrainedModel)
            and module not in inside
            and not set(module.modules()) & known
            # Without projections of its own, as of position biases.
            and any(isinstance(part, (torch.nn.Linear, torch.nn.Conv2d)) for part in module.modules())
        }
    )


def _without_effect(tiny: Tiny, blocks: Sequence[Block]) -> list[Block]:
    """Return the blocks whose units, all masked, change the outputs by no more than a mistake could."""
    found = []
    for block in blocks:
        with features_scaled([block], factors_of([block], {block.name: set()})):
            outputs = forward_outputs(tiny.model, tiny.batch)
        if max_relative_difference(list(tiny.outputs), outputs) <= _EFFECT:
            found.append(block)
    return found


def _pattern(blocks: Sequence[Block], seed: int) -> dict[str, set[int]]:
    """Return random units to keep in each block; the first block keeps none, the last one all."""
    generator = random.Random(seed)
    kept = {}
    for index, block in enumerate(blocks):
        number = generator.randint(0, len(block.unit_ids))
        if seed == 0 and index == 0:
            number = 0
        if seed == 0 and index == len(blocks) - 1 and index:
            number = len(block.unit_ids)
        kept[block.name] = set(generator.sample(block.unit_ids, number))
    return kept


def _difference(tiny: Tiny, blocks: Sequence[Block], kept: dict[str, set[int]], compact: Any) -> float:
    """Return the difference between the outputs of the masked and of the compact model."""
    with features_scaled(blocks, factors_of(blocks, kept)):
        expected = forward_outputs(tiny.model, tiny.batch)
    return max_relative_difference(expected, forward_outputs(compact(blocks, kept), tiny.batch))


def _removed(blocks: Sequence[Block], kept: dict[str, set[int]]) -> dict[int | str, set[int]]:
    return {block.name: set(block.unit_ids) - kept[block.name] for block in blocks}


def _without_heads(tiny: Tiny, blocks: Sequence[Block], kept: dict[str, set[int]]) -> PreTrainedModel:
    compact = deepcopy(tiny.model)
    gating.prune_heads(compact, _removed(blocks, kept), discover=tiny.discover, probe=tiny.probe)
    return compact


def _without_neurons(tiny: Tiny, blocks: Sequence[Block], kept: dict[str, set[int]]) -> PreTrainedModel:
    compact = deepcopy(tiny.model)
    gating.prune_neurons(compact, _removed(blocks, kept), group_size=_GROUP_SIZE, probe=tiny.batch)
    return compact


def _generates_the_same(tiny: Tiny, blocks: Sequence[Block]) -> bool | None:
    """Return whether the masked and the compact model generate the same tokens; None where the model generates none."""
    if not tiny.model.can_generate():
        return None
    inputs = {name: value for name, value in tiny.batch.items() if name != "decoder_input_ids"}
    options: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "num_beams": 1}

    def generate(one: PreTrainedModel) -> Tensor:
        torch.manual_seed(0)
        result = one.generate(**inputs, **options)
        return result if isinstance(result, Tensor) else result["sequences"]

    kept = _pattern(blocks, 1)
    try:
        generate(tiny.model)
    except Exception:
        return None  # The dense model does not, for these inputs.
    with features_scaled(blocks, factors_of(blocks, kept)):
        expected = generate(tiny.model)
    return torch.equal(expected, generate(_without_heads(tiny, blocks, kept)))
