"""The removal of heads from an attention block, as edits: of its rows and columns, of its counts, and of its class.

Blocks are those of ``gating.structure.attention``. One layer may make the rows of queries, keys and values together. A
block that loses all heads drops its projections.
"""

from collections.abc import Collection, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from gating.errors import InputError
from gating.families.layouts import RowLayout, num_outputs
from gating.loader.modeling import subclass
from gating.loader.parts import (
    ConfigView,
    emptied,
    narrow_conv1d,
    original_class,
    padded,
    replaced_forward,
    shared_bias,
    silenced,
    sliced_inputs,
)
from gating.structure.edits import ABSENT, Edit, plan_cut, plan_entries, positions
from gating.structure.hooks import forget_forward


def _kinds_of(layout: RowLayout) -> str:
    """Return the kinds of heads with rows in a projection: ``q``, ``k`` and ``v``."""
    return "q" if layout == "hkv" else layout.lstrip("hgp")


def _run_width(block: Any, linear: nn.Module, layout: RowLayout, kind: str) -> int:
    """Return the number of rows that one head has in a projection as query, key or value."""
    kinds = _kinds_of(layout)
    if block.key_dim != block.head_dim and len(set(kinds)) > 1:
        is_of_key = kind in ("k" if block.spec.has_state else "qk")
        return int(block.key_dim if is_of_key else block.head_dim)
    num_runs = sum(len(block.head_slots) if one == "q" else block.num_key_value_heads for one in kinds)
    return num_outputs(linear) // num_runs


def row_runs(block: Any, layout: RowLayout) -> list[tuple[str, int]]:
    """Return the kind and position of the head of each run of rows of a projection, in the order of the rows.

    The kind is ``q`` for rows of one query head, and ``k`` or ``v`` for those of one key-value head.
    """
    queries = [("q", head) for head in range(len(block.head_slots))]
    keys = [("k", head) for head in range(block.num_key_value_heads)]
    values = [("v", head) for head in range(block.num_key_value_heads)]
    runs = {"q": queries, "k": keys, "v": values}
    kinds = _kinds_of(layout)
    if kinds in ("q", layout):
        return [run for kind in kinds for run in runs[kind]]
    num_groups = int(getattr(block.module, "mp_num", 1)) if layout == "pqvk" else len(keys)
    size = {kind: len(its_runs) // num_groups for kind, its_runs in runs.items()}
    return [
        run
        for group in range(num_groups)
        for kind in kinds
        for run in runs[kind][group * size[kind] : (group + 1) * size[kind]]
    ]


def run_widths(block: Any, linear: nn.Module, layout: RowLayout) -> list[int]:
    """Return the number of rows of each run of a projection."""
    widths = [_run_width(block, linear, layout, kind) for kind, _ in row_runs(block, layout)]
    if sum(widths) != num_outputs(linear):
        raise InputError(
            f"{block.name} has a projection with {num_outputs(linear)} rows, which cannot be shared out evenly "
            f"among {len(widths)} heads: describe {type(block.module).__name__} with gating.register_attention_spec."
        )
    return widths


def rows_of(
    block: Any, linear: nn.Module, layout: RowLayout, slots: Collection[int], groups: Collection[int]
) -> Tensor:
    """Return the positions of the rows of a projection for the heads in some slots, and for some key-value heads."""
    heads = {"q": slots, "k": groups, "v": groups}
    kinds = row_runs(block, layout)
    runs = [i for i, (kind, head) in enumerate(kinds) if head in heads[kind]]
    if layout == "pqvk":
        # Parts of different sizes would need another forward; without parts, the class's own serves.
        runs.sort(key=lambda i: "qvk".index(kinds[i][0]))
    widths = run_widths(block, linear, layout)
    if len(set(widths)) == 1:
        return positions(runs, widths[0])
    ends = list(accumulate(widths))
    return positions([row for i in runs for row in range(ends[i] - widths[i], ends[i])])


def plan_head_removal(block: Any, kept: Collection[int], *, keeps_slot: bool = False) -> list[Edit]:
    """Plan the removal of all heads except the kept ones; see ``AttentionBlock.plan_removal``."""
    heads = tuple(head for head in block.head_ids if head in kept)
    if heads == block.head_ids:
        return []
    slots, groups = staying(block, heads, keeps_slot=keeps_slot)
    return [
        *(_plan_cuts(block, slots, groups, heads) if slots else _plan_emptying(block)),
        *_plan_counts(block, len(slots), len(groups)),
        *_plan_class(block, heads, tuple(block.head_slots[slot] for slot in slots)),
        # Where a folder is loaded, rows of the user are not known.
        *([Edit(block.module, block.stored_as, block.spec)] if block.is_of_user else []),
    ]


def staying(block: Any, kept: Collection[int], *, keeps_slot: bool = False) -> tuple[list[int], list[int]]:
    """Return the positions of the slots and of the key-value heads that stay if some heads are kept.

    In each group that stays, the first removed heads are padding, as many as it lacks to the size of the largest.
    Without any kept head, the first one pads the first group, unless the block can be emptied, and ``keeps_slot``
    is false.
    """
    if not kept and block.can_be_emptied and not keeps_slot:
        return [], []
    size = block.queries_per_key
    counts = [
        sum(head in kept for head in block.head_slots[start : start + size])
        for start in range(0, len(block.head_slots), size)
    ]
    groups = [group for group, count in enumerate(counts) if count or block.spec.keeps_key_value_heads] or [0]
    slots: list[int] = []
    for group in groups:
        kept_first = sorted(
            range(group * size, (group + 1) * size), key=lambda slot: block.head_slots[slot] not in kept
        )
        slots += sorted(kept_first[: max(1, *counts)])
    return slots, groups


def _plan_cuts(block: Any, slots: Sequence[int], groups: Sequence[int], heads: Collection[int]) -> list[Edit]:
    edits: list[Edit] = []
    for linear, layout in block.projections():
        edits += plan_cut(linear, rows_of(block, linear, layout, slots, groups), side="outputs")
    padding = [position for position, slot in enumerate(slots) if block.head_slots[slot] not in heads]
    for output, width in [(block.output_projection, block.head_dim), *block.other_outputs()]:
        edits += plan_cut(output, positions(slots, width), side="inputs", silent=positions(padding, width))
    # Parameters with entries for each head.
    for pairs, stay, num_before in (
        (block.spec.per_head, slots, len(block.head_slots)),
        (block.spec.per_key_value_head, groups, block.num_key_value_heads),
    ):
        for path, dim in pairs:
            if block.has(path):
                owner, name = block.locate(path)
                edits.append(plan_entries(owner, name, stay, dim=dim, num_before=num_before))
    return edits


def _plan_emptying(block: Any) -> list[Edit]:
    """Plan to keep only the output projections: parameters without gradient stop distributed training."""
    module, nothing = block.module, positions([])
    outputs = [block.output_projection, *(linear for linear, _ in block.other_outputs())]
    inside, kept = set(module.modules()), {part for output in outputs for part in output.modules()}
    outside = [linear for linear, _ in block.projections() if linear not in inside]
    unused = [
        name
        for name, child in module.named_children()
        if not kept & set(child.modules()) and next(child.parameters(), None) is not None
    ]
    own = [name for name, _ in module.named_parameters(recurse=False)]
    # Tables that checkpoints do not have would stay without values.
    tables = [name for name, _ in module.named_buffers(recurse=False) if name in module._non_persistent_buffers_set]
    return [
        *(edit for linear in outputs for edit in plan_cut(linear, nothing, side="inputs")),
        *(edit for linear in outside for edit in plan_cut(linear, nothing, side="outputs")),
        *(Edit(module, name, None) for name in (*unused, *own, *tables)),
    ]


def _plan_counts(block: Any, num_slots: int, num_groups: int) -> list[Edit]:
    """Plan the update of the counts that a module keeps beside its weights."""
    module: Any = block.module
    values: dict[str, Any] = {path: num_slots for path in block.spec.head_counts if num_slots or path[0] != "^"}
    values |= dict.fromkeys(block.spec.head_widths, num_slots * block.head_dim)
    values |= dict.fromkeys(("num_key_value_heads", "num_kv_heads", "num_k_heads"), num_groups)
    values |= dict.fromkeys(block.spec.key_widths, num_groups * block.key_dim)
    values["num_key_value_groups"] = num_slots // num_groups if num_groups else 1
    values["mp_num"] = 1
    present = [(block.locate(path), value) for path, value in values.items() if block.has(path)]
    edits = [Edit(owner, name, value) for (owner, name), value in present]
    if block.spec.config_counts:
        view = ConfigView(module.config, dict.fromkeys(block.spec.config_counts, num_slots))
        edits.append(Edit(module, "config", view))
    return edits


def _plan_class(block: Any, heads: tuple[int, ...], slots: tuple[int, ...]) -> list[Edit]:
    """Plan to change a module's class where its ``forward`` would fail, and to note its heads and its slots."""
    module, spec, edits = block.module, block.spec, list[Edit]()
    parts: list[tuple[Any, ...]] = []
    if not slots:
        parts.append((emptied, spec.returns, spec.output_projection))
    elif spec.shares_bias:
        parts.append((shared_bias, block.num_heads_before))
    elif spec.per_head_inputs:
        parts.append((sliced_inputs, spec.per_head_inputs, block.num_heads_before))
    elif spec.forward is not None:
        parts.append((replaced_forward, spec.forward))
    is_padded = len(heads) < len(slots)
    if is_padded:
        is_kept = tuple(head in heads for head in slots)
        parts.append((padded, is_kept, block.head_dim, spec.output_projection))
    for output, width in [(block.output_projection, block.head_dim), *block.other_outputs()]:
        narrow = [(narrow_conv1d,)] if not slots and isinstance(output, Conv1D) else []
        mask = [(silenced, is_kept, width)] if is_padded else narrow
        edits.append(Edit(output, "__class__", subclass(type(output), *mask)))
    cls = subclass(original_class(type(module)), *parts)
    # Hooks may have changed the class for as long as they are there.
    if cls is not type(module) or not spec.calls_projection:
        forget_forward(module)
        edits.append(Edit(module, "__class__", cls))
    memory: dict[str, object] = {
        "num_heads_before": block.num_heads_before,
        "num_key_value_heads_before": getattr(module, "num_key_value_heads_before", block.num_key_value_heads),
        "head_ids": heads,
        "head_slots": slots,
        "head_index": ABSENT,
    }
    if slots and (spec.shares_bias or spec.per_head_inputs):
        # Persistent, because from_pretrained builds models without values and fills in those of the file.
        memory["head_index"] = nn.Buffer(torch.tensor(slots, device=next(module.parameters()).device))
    return [*edits, *(Edit(module, name, value) for name, value in memory.items())]
