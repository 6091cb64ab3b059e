"""Removal of units; of heads: rows of the query, key and value projections, and columns of the output projection.

With grouped queries, all key-value heads serve the same number of query heads, their group. A group therefore cannot
shrink alone: groups without any head are removed, and the others shrink to the size of the largest. Removed heads pad
them; padding keeps its query rows, and its columns of the output projection are zero.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import nn

from .attention_spec import RowLayout
from .blocks import AttentionBlock
from .edits import ABSENT, Edit, Features, SetAttribute, num_outputs, plan_cut, plan_entries
from .empty import BiasOnly, emptied
from .errors import InputError
from .feed_forward import Block
from .subclasses import (
    ConfigView,
    HeadMask,
    original_class,
    padded,
    replaced_forward,
    shared_bias,
    silenced,
    sliced_inputs,
    subclass,
)

__all__ = ["ConfigView", "Selection", "plan_removal", "row_runs", "rows_of", "run_widths", "select"]

# Modules of an emptied block that remain in use: the tables of T5 and WavLM serve all layers, norms end the block.
_STAYS_WHEN_EMPTIED = {
    "t5": {"relative_attention_bias"},
    "albert": {"LayerNorm"},
    "funnel": {"layer_norm"},
    "forward": {"rel_attn_embed"},
}


@dataclass(frozen=True)
class Selection:
    """The part of a block that stays.

    Attributes:
        slots: Positions of the slots that stay among the present ones.
        key_values: Positions of the key-value heads that stay.
        heads: Original numbers of the kept heads.
        head_slots: Original numbers of the heads in the slots that stay, padding included.
    """

    slots: tuple[int, ...]
    key_values: tuple[int, ...]
    heads: tuple[int, ...]
    head_slots: tuple[int, ...]

    @property
    def padding(self) -> list[int]:
        """Positions of padding among the slots that stay."""
        return [position for position, head in enumerate(self.head_slots) if head not in self.heads]


def plan_removal(block: Block, kept: Collection[int], *, padding: Collection[int] | None = None) -> list[Edit]:
    """Plan the removal of all units of a block except the kept ones.

    Args:
        block: The block.
        kept: Original numbers of the heads, or of the groups of neurons, to keep.
        padding: Original numbers of heads that pad groups of query heads, or do nothing alone; chosen here if None.

    Returns:
        Edits to apply in order; none if every unit is kept.

    Raises:
        ValueError: The padding does not fill the groups evenly, or no head is kept and the class needs one.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> from gating import find_attention_blocks
        >>> model = BertModel(BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=4))
        >>> for edit in plan_removal(find_attention_blocks(model)[0], kept=[0, 3]):
        ...     edit.apply()
        >>> model.encoder.layer[0].attention.self.query
        Linear(in_features=8, out_features=4, bias=True)
    """
    if not isinstance(block, AttentionBlock):
        return block.plan_removal(kept)
    if set(kept) == set(block.head_ids) and padding is None:
        return []
    if not (kept or padding) and block.spec.returns == "unknown":
        raise InputError(
            f"{block.name} ({type(block.module).__name__}) cannot be left without a head: its return value then is "
            "unknown. Keep one head, or describe the class with gating.register_attention_spec."
        )
    selection = select(block, kept, padding)
    if selection.head_slots == block.head_slots and selection.heads == block.head_ids:
        return []
    memory = {
        "num_heads_before": block.num_heads_before,
        "head_ids": selection.heads,
        "head_slots": selection.head_slots,
    }
    return [
        *(_plan_slicing(block, selection) if selection.slots else _plan_emptying(block)),
        *_plan_attributes(block, selection),
        *_plan_class(block, selection),
        *(SetAttribute(block.module, name, value) for name, value in memory.items()),
    ]


def select(block: AttentionBlock, kept: Collection[int], padding: Collection[int] | None = None) -> Selection:
    """Return the part of a block that stays; the arguments and errors are those of :func:`plan_removal`."""
    if not (kept or padding or block.spec.lends):
        return Selection((), (), (), ())
    slots = block.head_slots
    size = len(slots) // block.num_key_value_heads
    groups = [slots[start : start + size] for start in range(0, len(slots), size)]
    all_stay = block.spec.keeps_key_value_heads
    kept_groups = [index for index, group in enumerate(groups) if all_stay or set(group) & set(kept or padding or ())]
    if padding is None:
        padding = _choose_padding([groups[index] for index in kept_groups], set(kept))
    stay = {*kept, *padding}
    sizes = {len(set(groups[index]) & stay) for index in kept_groups}
    if len(sizes) != 1 or not stay <= {head for index in kept_groups for head in groups[index]}:
        raise InputError(
            f"In {block.name}, {size} query heads share each key-value head; heads {sorted(kept)} with "
            f"padding {sorted(padding)} do not fill the groups evenly."
        )
    return Selection(
        slots=tuple(position for position, head in enumerate(slots) if head in stay),
        key_values=tuple(kept_groups),
        heads=tuple(head for head in slots if head in kept),
        head_slots=tuple(head for head in slots if head in stay),
    )


def _choose_padding(groups: Sequence[Sequence[int]], kept: set[int]) -> set[int]:
    """Return the first removed heads of each group, as many as it lacks to the size of the largest."""
    most = max(1, *(len(set(group) & kept) for group in groups))
    padding: set[int] = set()
    for group in groups:
        removed = [head for head in group if head not in kept]
        padding |= set(removed[: most - len(set(group) & kept)])
    return padding


def rows_of(block: AttentionBlock, linear: nn.Module, layout: RowLayout, selection: Selection) -> Features:
    """Return the rows of a projection that stay."""
    stays = {"q": set(selection.slots), "k": set(selection.key_values), "v": set(selection.key_values)}
    kinds = row_runs(block, layout)
    runs = [i for i, (kind, head) in enumerate(kinds) if head in stays[kind]]
    if layout == "pqvk":
        # Parts of different sizes would need another forward; without parts, the class's own serves.
        runs.sort(key=lambda i: "qvk".index(kinds[i][0]))
    widths = run_widths(block, linear, layout)
    if len(set(widths)) == 1:
        return Features(runs, widths[0])
    ends = list(accumulate(widths))
    return Features([row for i in runs for row in range(ends[i] - widths[i], ends[i])], 1)


def row_runs(block: AttentionBlock, layout: RowLayout) -> list[tuple[str, int]]:
    """Return the kind and position of the head of each run of rows of a projection, in the order of the rows.

    The kind is ``q`` for rows of one query head, and ``k`` or ``v`` for those of one key-value head.
    """
    queries = [("q", head) for head in range(len(block.head_slots))]
    keys = [("k", head) for head in range(block.num_key_value_heads)]
    values = [("v", head) for head in range(block.num_key_value_heads)]
    runs = {"q": queries, "k": keys, "v": values}
    kinds = "q" if layout == "hkv" else layout.lstrip("hgp")
    if kinds in ("q", layout):
        return [run for kind in kinds for run in runs[kind]]
    num_groups = block.num_parts if layout == "pqvk" else len(keys)
    size = {kind: len(its_runs) // num_groups for kind, its_runs in runs.items()}
    return [
        run
        for group in range(num_groups)
        for kind in kinds
        for run in runs[kind][group * size[kind] : (group + 1) * size[kind]]
    ]


def run_widths(block: AttentionBlock, linear: nn.Module, layout: RowLayout) -> list[int]:
    """Return the number of rows of each run of a projection."""
    num_rows, kinds = num_outputs(linear), [kind for kind, _ in row_runs(block, layout)]
    if block.key_dim != block.head_dim and len(set(kinds)) > 1:
        with_keys = "k" if block.spec.has_state else "qk"
        widths = [block.key_dim if kind in with_keys else block.head_dim for kind in kinds]
    else:
        widths = [num_rows // len(kinds)] * len(kinds)
    if sum(widths) != num_rows:
        raise InputError(
            f"{block.name} has a projection with {num_rows} rows, which cannot be shared out evenly among "
            f"{len(kinds)} heads: describe {type(block.module).__name__} with gating.register_attention_spec."
        )
    return widths


def _plan_slicing(block: AttentionBlock, selection: Selection) -> list[Edit]:
    edits: list[Edit] = []
    for linear, layout in block.projections():
        edits += plan_cut(linear, rows_of(block, linear, layout, selection), side="outputs")
    output, columns = block.output_projection, Features(selection.slots, block.head_dim)
    edits += plan_cut(output, columns, side="inputs", silent=Features(selection.padding, block.head_dim))
    for other, width in block.other_outputs():
        edits += plan_cut(other, Features(selection.slots, width), side="inputs")
    cls = type(output)
    masked = subclass(cls, silenced, _padding_mask(block, selection)) if selection.padding else original_class(cls)
    edits.append(SetAttribute(output, "__class__", masked))
    for paths, kept, num_before in (
        (block.spec.per_head, selection.slots, len(block.head_slots)),
        (block.spec.per_key_value_head, selection.key_values, block.num_key_value_heads),
    ):
        for path, dim in paths:
            if block.has(path):
                edits.append(plan_entries(*block.locate(path), kept, dim=dim, num_before=num_before))
    return edits


def _padding_mask(block: AttentionBlock, selection: Selection) -> HeadMask:
    is_kept = tuple(head in selection.heads for head in selection.head_slots)
    return HeadMask(is_kept, block.head_dim, block.spec.output_projection)


def _plan_emptying(block: AttentionBlock) -> list[Edit]:
    """Plan to keep only the output projection's bias: parameters without gradient stop distributed training."""
    module = block.module
    outputs = [block.locate(path) for path in (block.spec.output_projection, *block.spec.other_outputs)]
    kept = {part for owner, name in outputs for part in getattr(owner, name).modules()}
    stays = _STAYS_WHEN_EMPTIED.get(block.spec.returns, set())
    unused = [
        name
        for name, child in module.named_children()
        if name not in stays and not kept & set(child.modules()) and next(child.parameters(), None) is not None
    ]
    own = dict(module.named_parameters(recurse=False))
    # Tables that checkpoints do not have would stay without values.
    tables = [name for name, _ in module.named_buffers(recurse=False) if name in module._non_persistent_buffers_set]
    gone = [SetAttribute(module, name, None) for name in (*unused, *own, *tables)]
    if isinstance(module, nn.MultiheadAttention):
        # Models initialize these by name, so that buffers without rows take their places. Undone, they come back in the
        # order of the names.
        gone = [SetAttribute(module, name, ABSENT) for name in reversed(own)]
        gone += [SetAttribute(module, name, nn.Buffer(own[name].detach()[:0].clone())) for name in own]
    of_parent = [linear for linear, _ in block.projections() if linear not in set(module.modules())]
    return [
        *(SetAttribute(owner, name, BiasOnly.replacing(getattr(owner, name))) for owner, name in outputs),
        *gone,
        *(edit for linear in of_parent for edit in plan_cut(linear, Features([], 1), side="outputs")),
        # from_pretrained would initialize projections that are gone.
        SetAttribute(module, "_is_hf_initialized", True),
    ]


def _plan_attributes(block: AttentionBlock, selection: Selection) -> list[Edit]:
    """Plan the update of the counts that a module keeps beside its weights."""
    module, num_slots, num_groups = block.module, len(selection.slots), len(selection.key_values)
    values: dict[str, Any] = {path: num_slots for path in block.spec.head_counts if num_slots or path[0] != "^"}
    values |= dict.fromkeys(block.spec.head_widths, num_slots * block.head_dim)
    values |= dict.fromkeys(("num_key_value_heads", "num_kv_heads", "num_k_heads"), num_groups)
    values |= dict.fromkeys(block.spec.key_widths, num_groups * block.key_dim)
    values["num_key_value_groups"] = num_slots // num_groups if num_groups else 1
    values["mp_num"] = 1
    edits: list[Edit] = [SetAttribute(*block.locate(path), value) for path, value in values.items() if block.has(path)]
    if block.spec.config_counts:
        view = ConfigView(module.config, dict.fromkeys(block.spec.config_counts, num_slots))
        edits.append(SetAttribute(module, "config", view))
    return edits


def _plan_class(block: AttentionBlock, selection: Selection) -> list[Edit]:
    """Plan to change a module's class where its ``forward`` would fail."""
    module, spec = block.module, block.spec
    maker: Callable[..., dict[str, Any]] | None = None
    arguments: tuple[Any, ...] = ()
    if not selection.slots and spec.returns != "forward":
        maker, arguments = emptied, (spec.returns,)
    elif spec.returns == "t5":
        maker = shared_bias
    elif spec.per_head_inputs:
        maker, arguments = sliced_inputs, (spec.per_head_inputs,)
    elif spec.forward is not None:
        maker, arguments = replaced_forward, (spec.forward,)
    head_index: object = ABSENT
    if maker in (shared_bias, sliced_inputs):
        # Persistent, because from_pretrained builds models without values and fills in those of the file.
        device = next(module.parameters()).device
        head_index = nn.Buffer(torch.tensor(selection.head_slots, device=device))
    if selection.padding:
        maker, arguments = padded, (maker, arguments, _padding_mask(block, selection))
    cls = original_class(type(module)) if maker is None else subclass(type(module), maker, *arguments)
    # Hooks may have changed the class for as long as they are there.
    changes = cls is not type(module) or not spec.calls_projection
    edits: list[Edit] = [SetAttribute(module, "__class__", cls)] if changes else []
    return [*edits, SetAttribute(module, "head_index", head_index)]
