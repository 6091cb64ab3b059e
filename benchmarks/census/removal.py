"""Heads and neurons of one tiny model, removed in random patterns, and the difference from the masked model."""

import random
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

import gating
from benchmarks.census.models import looks_like_attention
from gating.discovery.find import search_blocks
from gating.discovery.ungated import UngatedModules
from gating.proof.outputs import forward_outputs, max_relative_difference
from gating.proof.prove import factors_of, features_scaled
from gating.structure.attention import AttentionBlock
from gating.structure.blocks import Block

# Largest relative difference of masked and compact outputs that another order of summation explains.
EXACT = 1e-4
# Masking a block has to change the outputs by more, so that a mistake in it would show.
_EFFECT = 10 * EXACT
_GROUP_SIZE = 16
BATCH = "batch.pt"

Row = dict[str, Any]
Unit = Literal["heads", "neurons"]
UNITS: tuple[Unit, ...] = ("heads", "neurons")


class Tiny(NamedTuple):
    """A tiny model, its inputs and outputs, and whether heads are found by discovery, beside the registry."""

    model: PreTrainedModel
    batch: Mapping[str, Any]
    outputs: Sequence[Tensor]
    discover: bool = False

    def options(self, unit: Unit) -> Row:
        """Return the options with which blocks of a unit are found and removed."""
        if unit == "neurons":
            return {"group_size": _GROUP_SIZE, "discover": True, "probe": self.batch}
        return {"discover": self.discover, "probe": self.batch if self.discover else None}


def examine_units(tiny: Tiny, unit: Unit) -> Row:
    """Remove units in random patterns, and compare outputs and generated tokens with those of the masked model."""
    blocks, ungated = search_blocks(tiny.model, unit, **tiny.options(unit))
    row: Row = {"num_blocks": len(blocks), "ungated": _described(ungated)}
    if unit == "heads":
        row["num_heads"] = sum(block.num_heads for block in blocks)
        if unnamed := _unnamed(tiny.model, blocks, [name for one in ungated for name in one.names]):
            return {**row, "outcome": "wrong", "reason": f"no word about {', '.join(unnamed)}"}
    unproven = _without_effect(tiny, blocks)
    row["unproven"] = _counted(unproven)
    if len(unproven) == len(blocks):
        return {**row, "outcome": "unproven", "reason": f"masking all {unit} of any block does not change the outputs"}
    patterns = range(3 if unit == "heads" else 2)
    row["difference"] = max(_difference(tiny, unit, blocks, pattern(blocks, seed)) for seed in patterns)
    if row["difference"] > EXACT:
        return {**row, "outcome": "wrong", "reason": f"compact outputs differ by {row['difference']:.1e}"}
    if unit == "heads":
        row["generates"] = _generates_the_same(tiny, blocks)
        if row["generates"] is False:
            return {**row, "outcome": "wrong", "reason": "other tokens are generated"}
    return {**row, "outcome": "exact"}


def save(tiny: Tiny, folder: Path, *, neurons: bool) -> Row:
    """Save a compact model without some heads, and neurons if asked for, with a batch and its outputs.

    Another process loads it and compares.
    """
    compact = tiny.model
    for unit in UNITS if neurons else UNITS[:1]:
        blocks, _ = search_blocks(compact, unit, **tiny.options(unit))
        compact = without(tiny._replace(model=compact), unit, blocks, pattern(blocks, 0))
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


def pattern(blocks: Sequence[Block], seed: int) -> dict[str, set[int]]:
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


def _difference(tiny: Tiny, unit: Unit, blocks: Sequence[Block], kept: dict[str, set[int]]) -> float:
    """Return the difference between the outputs of the masked and of the compact model."""
    with features_scaled(blocks, factors_of(blocks, kept)):
        expected = forward_outputs(tiny.model, tiny.batch)
    return max_relative_difference(expected, forward_outputs(without(tiny, unit, blocks, kept), tiny.batch))


def without(tiny: Tiny, unit: Unit, blocks: Sequence[Block], kept: dict[str, set[int]]) -> PreTrainedModel:
    """Return a copy of a model whose blocks have the kept units only."""
    compact = deepcopy(tiny.model)
    removed = {block.name: set(block.unit_ids) - kept[block.name] for block in blocks}
    prune = gating.prune_heads if unit == "heads" else gating.prune_neurons
    prune(compact, removed, **tiny.options(unit))
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

    kept = pattern(blocks, 1)
    try:
        generate(tiny.model)
    except Exception:
        return None  # The dense model does not, for these inputs.
    with features_scaled(blocks, factors_of(blocks, kept)):
        expected = generate(tiny.model)
    return torch.equal(expected, generate(without(tiny, "heads", blocks, kept)))
