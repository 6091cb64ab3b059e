"""Rows of heads in the projections of attention, which one layer may make for queries, keys and values together.

Blocks are those of ``gating.structure.attention``.
"""

from collections.abc import Collection
from itertools import accumulate
from typing import Any

from torch import Tensor, nn

from gating.errors import InputError
from gating.families.layouts import RowLayout
from gating.families.linear import num_outputs
from gating.structure.edits import positions

__all__ = ["row_runs", "rows_of", "run_widths"]


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
