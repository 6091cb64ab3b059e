"""Physical removal of heads: rows of queries, keys and values, columns of the output projection."""

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import nn

from .blocks import AttentionBlock
from .config_view import ConfigView
from .edits import ABSENT, Edit
from .empty import BiasOnly, emptied
from .errors import InputError
from .grouping import Selection, rows_of, select
from .linear import Features, plan_take, plan_take_parameter
from .slicing import HeadMask, padded, replaced_forward, shared_bias, silenced, sliced_inputs
from .subclasses import original_class, subclass

__all__ = ["plan_removal"]

# Modules of an emptied block that are still used: T5's table serves all layers, ALBERT's norm ends the block.
_STAYS_WHEN_EMPTIED = {"t5": {"relative_attention_bias"}, "albert": {"LayerNorm"}}


def plan_removal(block: AttentionBlock, kept: Collection[int], *, padding: Collection[int] | None = None) -> list[Edit]:
    """Plan the removal of all heads of a block but the kept ones.

    Args:
        block: Where the heads are.
        kept: Numbers, in the original model, of the heads to keep.
        padding: Numbers of the heads that stay to fill groups of query heads; chosen here when left out.

    Returns:
        Edits for :func:`~gating.structure.edits.apply_edits`; none if every head is kept.

    Raises:
        ValueError: The padding does not fill the groups evenly, or no head is kept and the block cannot do without.
    """
    if set(kept) == set(block.head_ids) and padding is None:
        return []
    if not kept and block.spec.returns == "unknown":
        raise InputError(
            f"{block.name} ({type(block.module).__name__}) cannot be left without a head: what it returns then was not "
            "understood. Keep one head, or describe the class with gating.register_attention_spec."
        )
    selection = select(block, kept, padding)
    if selection.head_slots == block.head_slots and selection.heads == block.head_ids:
        return []
    memory: dict[str, Any] = {
        "num_heads_before": block.num_heads_before,
        "head_ids": selection.heads,
        "head_slots": selection.head_slots,
    }
    return [
        *(_plan_emptying(block) if not kept else _plan_slicing(block, selection)),
        *_plan_attributes(block, selection),
        *_plan_class(block, selection),
        *(_set(block.module, name, value) for name, value in memory.items()),
    ]


def _plan_slicing(block: AttentionBlock, selection: Selection) -> list[Edit]:
    edits = []
    for linear, layout in block.projections():
        edits += plan_take(linear, rows_of(block, layout, selection), side="outputs")
    edits += plan_take(
        block.output_projection,
        Features(selection.slots, block.head_dim),
        side="inputs",
        silent=Features(selection.padding, block.head_dim),
    )
    edits.append(_set(block.output_projection, "__class__", _output_class(block, selection)))
    for paths, kept, num_before in (
        (block.spec.per_head, selection.slots, len(block.head_slots)),
        (block.spec.per_key_value_head, selection.key_values, block.num_key_value_heads),
    ):
        for path, dim in paths:
            if block.has(path):
                holder, name = block.locate(path)
                width = getattr(holder, name).shape[dim] // num_before
                edits += plan_take_parameter(holder, name, Features(kept, width), dim=dim)
    return edits


def _output_class(block: AttentionBlock, selection: Selection) -> type[nn.Module]:
    """Return the class of the output projection: its own, or one that holds padding heads at zero."""
    cls = type(block.output_projection)
    return subclass(cls, silenced, _padding_mask(block, selection)) if selection.padding else original_class(cls)


def _padding_mask(block: AttentionBlock, selection: Selection) -> HeadMask:
    is_kept = tuple(head in selection.heads for head in selection.head_slots)
    return HeadMask(is_kept, block.head_dim, block.spec.output_projection)


def _plan_attributes(block: AttentionBlock, selection: Selection) -> list[Edit]:
    """Update the counts that a module keeps beside its weights; those that it has."""
    module, num_slots, num_groups = block.module, len(selection.slots), len(selection.key_values)
    values: dict[str, Any] = dict.fromkeys(block.spec.head_counts, num_slots)
    values |= dict.fromkeys(block.spec.head_widths, num_slots * block.head_dim)
    values |= dict.fromkeys(("num_key_value_heads", "num_kv_heads"), num_groups)
    values["num_key_value_groups"] = num_slots // num_groups if num_groups else 1
    edits = [_set(module, name, value) for name, value in values.items() if hasattr(module, name)]
    if block.spec.config_counts:
        view = ConfigView(module.config, dict.fromkeys(block.spec.config_counts, num_slots))
        edits.append(_set(module, "config", view))
    return edits


def _plan_class(block: AttentionBlock, selection: Selection) -> list[Edit]:
    """Change the module's class where its ``forward`` cannot go on as it is."""
    module, spec = block.module, block.spec
    maker: Callable[..., dict[str, Any]] | None = None
    arguments: tuple[Any, ...] = ()
    if not selection.slots:
        maker, arguments = emptied, (spec.returns,)
    elif spec.returns == "t5":
        maker = shared_bias
    elif spec.per_head_inputs:
        maker, arguments = sliced_inputs, (spec.per_head_inputs,)
    elif spec.forward is not None:
        maker, arguments = replaced_forward, (spec.forward,)
    has_index = maker in (shared_bias, sliced_inputs)
    if selection.padding:
        maker, arguments = padded, (maker, arguments, _padding_mask(block, selection))
    cls = original_class(type(module)) if maker is None else subclass(type(module), maker, *arguments)
    edits = [_set(module, "__class__", cls)] if cls is not type(module) else []
    if has_index:
        # A persistent buffer: from_pretrained builds models without data and fills in what the file holds.
        head_slots = selection.head_slots
        device = next(module.parameters()).device
        edits.append(Edit(module, "head_index", lambda: nn.Buffer(torch.tensor(head_slots, device=device))))
    else:
        edits.append(_set(module, "head_index", ABSENT))
    return edits


def _plan_emptying(block: AttentionBlock) -> list[Edit]:
    """A block without heads adds the output projection's bias and nothing else.

    Everything else that has parameters goes, since parameters that get no gradient stop distributed training.
    """
    holder, attribute = block.locate(block.spec.output_projection)
    output_projection = block.output_projection
    stays = _STAYS_WHEN_EMPTIED.get(block.spec.returns, set())
    edits = [Edit(holder, attribute, lambda: BiasOnly.replacing(output_projection))]
    for name, child in block.module.named_children():
        if name not in stays and child is not output_projection and next(child.parameters(), None) is not None:
            edits.append(_set(block.module, name, None))
    for name, _ in block.module.named_parameters(recurse=False):
        edits.append(_set(block.module, name, None))
    # from_pretrained leaves it alone then; it would initialise projections that are gone.
    edits.append(_set(block.module, "_is_hf_initialized", True))
    return edits


def _set(owner: object, attribute: str, value: object) -> Edit:
    return Edit(owner, attribute, lambda: value)
