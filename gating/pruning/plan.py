"""The planned edits of a removal: units go, gates are folded, settings that number heads follow; and its repetition."""

from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from gating.errors import InputError
from gating.families.layouts import weight_dim, without_adapter
from gating.loader.modeling import base_prefix
from gating.loader.record import LAYERS_KEY, SPEC_NOTES
from gating.loader.saving import become_compact
from gating.pruning.layers import drop_layers
from gating.structure.attention import AttentionBlock
from gating.structure.attention_removal import staying
from gating.structure.blocks import Block
from gating.structure.edits import ABSENT, Edit, apply_edits, positions, undo_edits
from gating.structure.feed_forward import FeedForwardBlock
from gating.structure.layers import dense_name, find_layer_lists, iter_blocks, layers_record


def kept_units(blocks: Sequence[Block], kept: Sequence[Tensor]) -> dict[str, set[int]]:
    """Return the units of the kept gates of each block, by its name, from the mask of its gates."""
    units = {}
    for block, mask in zip(blocks, kept, strict=True):
        slots = mask.repeat_interleave(len(block.slot_ids) // max(1, len(mask))).nonzero().flatten().tolist()
        units[block.name] = {block.slot_ids[slot] for slot in slots} & set(block.unit_ids)
    return units


def plan_pruning(model: nn.Module, blocks: Sequence[Block], kept: Mapping[str, Collection[int]]) -> list[Edit]:
    """Return the edits that remove all units of blocks but the kept ones, which have their original numbers."""
    edits = [edit for block in blocks for edit in block.plan_removal(kept[block.name])]
    return [*edits, *_plan_generation(model, blocks, kept)]


def plan_finalizing(model: nn.Module, blocks: Sequence[Block], values: Sequence[Tensor]) -> list[Edit]:
    """Plan to fold the values of each block's gates into its output projection, and to remove units of closed gates."""
    kept = kept_units(blocks, [one > 0 for one in values])
    edits: list[Edit] = []
    for block, block_values in zip(blocks, values, strict=True):
        slot_values = _slot_values(block, block_values)
        widths = torch.tensor(block.slot_widths, dtype=torch.long, device=slot_values.device)
        # Values are folded before the removal, so closed gates need no factor of 0.
        factors = torch.where(slot_values > 0, slot_values, 1.0).repeat_interleave(widths)
        edits += [*_plan_scaling(block, factors), *block.plan_removal(kept[block.name])]
    return [*edits, *_plan_generation(model, blocks, kept)]


def _plan_scaling(block: Block, scale: Tensor) -> list[Edit]:
    """Plan to multiply the features of a block, which gates multiply, by a scale, ``[sum(slot_widths)]``."""
    module, name, dim = block.input_weight
    if (scale == 1).all():
        return []
    edits = [_scaled(module, name, scale, dim)]
    for other, width in block.other_outputs():
        linear, factors = without_adapter(other), scale.unflatten(0, (len(block.slot_ids), -1))[:, :width].flatten()
        edits.append(_scaled(linear, "weight", factors, weight_dim(linear, "inputs")))
    return edits


def _scaled(owner: nn.Module, name: str, factors: Tensor, dim: int) -> Edit:
    return Edit(owner, name, kept=positions(range(len(factors))), dim=dim, factors=factors)


def folded_values(model: nn.Module, blocks: Sequence[Block], values: Sequence[Tensor]) -> dict[str, tuple[float, ...]]:
    """Return the gate value of each unit that a removal will keep, by the name of its block in the original model."""
    record, folded = layers_record(model), {}
    for block, block_values in zip(blocks, values, strict=True):
        by_unit = dict(zip(block.slot_ids, _slot_values(block, block_values).tolist(), strict=True))
        folded[dense_name(record, block.name)] = tuple(by_unit[unit] for unit in block.unit_ids if by_unit[unit] > 0)
    return folded


def _slot_values(block: Block, values: Tensor) -> Tensor:
    """Expand a block's gate values, ``[num_gates]``, to its slots, ``[num_slots]``."""
    return values.repeat_interleave(len(block.slot_ids) // max(1, len(values)))


def _plan_generation(model: nn.Module, blocks: Sequence[Block], kept: Mapping[str, Collection[int]]) -> list[Edit]:
    """Plan the update of the numbers and caches of generation that depend on heads."""
    # Before transformers 5.24, a model keeps its last static cache, with the former heads.
    caches = [Edit(model, "_cache")] if "_cache" in vars(model) else []
    return [*caches, *_plan_alignment_heads(model, blocks, kept)]


def _plan_alignment_heads(model: nn.Module, blocks: Sequence[Block], kept: Mapping[str, Collection[int]]) -> list[Edit]:
    """Plan the update of Whisper's ``alignment_heads``: pairs (decoder layer, head of its cross-attention).

    Word-level timestamps are computed from the attention of these heads. Kept heads get their new positions. If none is
    kept, the setting is removed, and transformers reports that these timestamps are not available.
    """
    config = getattr(model, "generation_config", None)
    pairs = getattr(config, "alignment_heads", None)
    if not pairs:
        return []
    attention = [block for block in blocks if isinstance(block, AttentionBlock)]
    cross_attention = {block.layer_idx: block for block in attention if block.is_cross_attention}
    moved: list[list[int]] = []
    for layer_idx, position in pairs:
        block = cross_attention.get(layer_idx)
        if block is None:
            moved.append([layer_idx, position])
            continue
        heads = kept[block.name]
        if block.head_slots[position] in heads:
            moved.append([layer_idx, staying(block, heads)[0].index(position)])
    return [Edit(config, "alignment_heads", moved or ABSENT)]


def remove_recorded(
    model: PreTrainedModel, record: Mapping[str, Any], *, folded: Mapping[str, Tensor] = MappingProxyType({})
) -> None:
    """Remove the units and layers from a model that are not in the record of a compact model made from it, in place.

    The model is the dense one, or one that had lost fewer; another is an ``InputError``, and loses nothing. Factors,
    ``[num_kept]``, are by the names of blocks in the dense model, and 1 where they are left out.
    """
    prefix, own, layers = base_prefix(model), layers_record(model), record.get(LAYERS_KEY, {})
    units = {dense_name(layers, name): notes for name, notes in record["units"].items()}
    for name, module in model.named_modules():
        # Layouts that were discovered.
        notes = units.get(dense_name(own, name.removeprefix(prefix)), {})
        vars(module).update({key: notes[key] for key in SPEC_NOTES if key in notes})
    gone, lists = set[str](), []
    for found in find_layer_lists(model):
        present = list(own.get("kept", {}).get(found.name, range(len(found.layers))))
        numbers = layers.get("kept", {}).get(found.name, present)
        stay = [place for place, number in enumerate(present) if number in numbers]
        lists += [(found, stay)] if len(stay) < len(present) else []
        gone |= {block.name for place, blocks in enumerate(found.blocks) if place not in stay for block in blocks}
    names = {block.name: dense_name(own, block.name) for block in iter_blocks(model) if block.name not in gone}
    noted = {name for name, notes in units.items() if {"head_ids", "kept_groups"} & notes.keys()}
    blocks = [
        _with_factors(block, units.get(names[block.name], {}), folded.get(names[block.name]))
        for block in iter_blocks(model)
        if block.name in names
    ]
    if noted - {*names.values()} or any(values is None for _, values in blocks):
        raise InputError(
            f"The removal to repeat is that of another model than this {type(model).__name__}: they have other heads, "
            "attention or feed-forward blocks. It takes the model that the removal began with."
        )
    done = apply_edits(plan_finalizing(model, *zip(*blocks, strict=True)))
    try:
        for found, stay in reversed(lists):
            done += drop_layers(model, found, stay)
        become_compact(model)
    except BaseException:
        undo_edits(done)
        raise


def _with_factors(block: Block, notes: Mapping[str, Any], own: Tensor | None) -> tuple[Block, Tensor | None]:
    """Return a block, and the factor of each of its slots, ``[num_slots]``; None if it lacks a unit that is kept.

    Removed units have 0. Neurons are in the groups of the kept ones, or in as many as there are factors.
    """
    if isinstance(block, FeedForwardBlock):
        size = notes.get("group_size", block.group_size if own is None else -(-block.width_before // len(own)))
        block = block.regrouped(size)
    kept = list(notes.get("head_ids", notes.get("kept_groups", block.unit_ids)))
    factors = dict(zip(kept, [1.0] * len(kept) if own is None else own.tolist(), strict=True))
    values = torch.tensor([factors.get(unit, 0.0) for unit in block.slot_ids])
    return block, values if set(kept) <= set(block.unit_ids) else None
