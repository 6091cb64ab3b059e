"""Edits of the counts and the class of an attention module that loses heads; one that loses all drops projections.

Blocks are those of ``gating.structure.attention``.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from gating.families.layouts import RowLayout
from gating.loader.biases import shared_bias, sliced_inputs
from gating.loader.classes import subclass
from gating.loader.conv1d import narrow_conv1d
from gating.loader.emptied import emptied
from gating.loader.padding import padded, silenced
from gating.loader.replaced import original_class, replaced_forward
from gating.loader.views import ConfigView
from gating.structure.edits import ABSENT, Edit

__all__ = ["kinds_of", "plan_class", "plan_counts", "plan_emptying"]


def kinds_of(layout: RowLayout) -> str:
    """Return the kinds of heads with rows in a projection: ``q``, ``k`` and ``v``."""
    return "q" if layout == "hkv" else layout.lstrip("hgp")


def plan_emptying(block: Any, outputs: Sequence[nn.Module]) -> list[Edit]:
    """Plan to keep only the output projections: parameters without gradient stop distributed training."""
    module = block.module
    kept = {part for output in outputs for part in output.modules()}
    unused = [
        name
        for name, child in module.named_children()
        if not kept & set(child.modules()) and next(child.parameters(), None) is not None
    ]
    own = [name for name, _ in module.named_parameters(recurse=False)]
    # Tables that checkpoints do not have would stay without values.
    tables = [name for name, _ in module.named_buffers(recurse=False) if name in module._non_persistent_buffers_set]
    return [Edit(module, name, None) for name in (*unused, *own, *tables)]


def plan_counts(block: Any, num_slots: int, num_groups: int) -> list[Edit]:
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


def plan_class(block: Any, heads: tuple[int, ...], slots: tuple[int, ...]) -> list[Edit]:
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
        edits.append(Edit(module, "__class__", cls))
    memory: dict[str, object] = {
        "num_heads_before": block.num_heads_before,
        "num_key_value_heads_before": block.num_key_value_heads_before,
        "head_ids": heads,
        "head_slots": slots,
    }
    memory["head_index"] = ABSENT
    if slots and (spec.shares_bias or spec.per_head_inputs):
        # Persistent, because from_pretrained builds models without values and fills in those of the file.
        memory["head_index"] = nn.Buffer(torch.tensor(slots, device=next(module.parameters()).device))
    return [*edits, *(Edit(module, name, value) for name, value in memory.items())]
