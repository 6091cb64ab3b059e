"""Removal of heads: which of them pad the groups of the others; other blocks plan their own removal.

With grouped queries, all key-value heads serve the same number of query heads, their group. A group therefore cannot
shrink alone: groups without any head are removed, and the others shrink to the size of the largest. Removed heads pad
them; padding keeps its query rows, and its columns of the output projection are zero.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import accumulate

from torch import nn
from transformers.pytorch_utils import Conv1D

from gating.errors import InputError
from gating.loader.changes import num_inputs, num_outputs
from gating.loader.heads import change_class, change_counts, empty
from gating.loader.layouts import RowLayout
from gating.loader.modules import BiasOnly
from gating.structure.blocks import AttentionBlock, Block
from gating.structure.edits import Edit, Features, plan_cut, plan_entries, set_all

__all__ = ["Selection", "has_no_weight", "plan_removal", "rows_of", "select"]


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
    return [
        *(_plan_slicing(block, selection) if selection.slots else _plan_emptying(block)),
        *set_all(change_counts(block, len(selection.slots), len(selection.key_values))),
        *set_all(change_class(block, selection.heads, selection.head_slots)),
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
    kinds = block.row_runs(layout)
    runs = [i for i, (kind, head) in enumerate(kinds) if head in stays[kind]]
    if layout == "pqvk":
        # Parts of different sizes would need another forward; without parts, the class's own serves.
        runs.sort(key=lambda i: "qvk".index(kinds[i][0]))
    widths = block.run_widths(linear, layout)
    if len(set(widths)) == 1:
        return Features(runs, widths[0])
    ends = list(accumulate(widths))
    return Features([row for i in runs for row in range(ends[i] - widths[i], ends[i])], 1)


def _plan_slicing(block: AttentionBlock, selection: Selection) -> list[Edit]:
    edits: list[Edit] = []
    for linear, layout in block.projections():
        edits += plan_cut(linear, rows_of(block, linear, layout, selection), side="outputs")
    output, columns = block.output_projection, Features(selection.slots, block.head_dim)
    edits += plan_cut(output, columns, side="inputs", silent=Features(selection.padding, block.head_dim))
    for other, width in block.other_outputs():
        edits += plan_cut(other, Features(selection.slots, width), side="inputs")
    for path, dim, kept, num_before in block.per_head(selection.slots, selection.key_values):
        edits.append(plan_entries(*block.locate(path), kept, dim=dim, num_before=num_before))
    return edits


def _plan_emptying(block: AttentionBlock) -> list[Edit]:
    outside = block.projections_outside()
    return [
        *set_all(empty(block)),
        *(edit for linear in outside for edit in plan_cut(linear, Features([], 1), side="outputs")),
    ]


def has_no_weight(module: nn.Module) -> bool:
    """Return whether a layer has no weight left to adapt, since its block has lost all heads or neurons."""
    is_linear = isinstance(module, (nn.Linear, Conv1D))
    return isinstance(module, BiasOnly) or (is_linear and 0 in (num_inputs(module), num_outputs(module)))
