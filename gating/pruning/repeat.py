"""A removal that is repeated: a dense model loses the units and layers that the record of a compact one lacks."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from gating.errors import InputError
from gating.loader.modeling import base_prefix
from gating.loader.record import LAYERS_KEY, SPEC_NOTES
from gating.loader.saving import become_compact
from gating.pruning.layers import drop_layers
from gating.pruning.plan import plan_finalizing
from gating.structure.blocks import Block
from gating.structure.edits import apply_edits, undo_edits
from gating.structure.feed_forward import FeedForwardBlock
from gating.structure.layers import dense_name, find_layer_lists, iter_blocks, layers_record

__all__ = ["remove_recorded"]


def remove_recorded(
    model: PreTrainedModel, record: Mapping[str, Any], *, folded: Mapping[str, Tensor] = MappingProxyType({})
) -> None:
    """Remove the units and layers from a model that are not in the record of a compact model made from it, in place.

    Without factors, the weights that stay are not those of the compact model, which the caller loads.

    Args:
        model: The dense model, or one that had lost fewer, without gates and adapters; it may be on the meta device.
        record: The record in the configuration of the compact model.
        folded: Factors of the kept units of each block, ``[num_kept]``, which are folded in; all 1 in blocks that are
            left out. Names are those in the dense model.

    Raises:
        InputError: The record is that of another model; nothing is removed.
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
