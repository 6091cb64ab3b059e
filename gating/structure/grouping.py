"""Which rows stay when heads that share keys and values are removed.

With grouped queries, ``num_heads // num_key_value_heads`` query heads read one key-value head, the same number for
each. Attention code relies on that, so a group that loses only some of its heads cannot shrink alone: groups without a
head left go, and the others get the size of the largest, where removed heads fill the places up. Such padding heads
keep their query rows; their columns of the output projection are zero.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from .blocks import AttentionBlock
from .errors import InputError
from .linear import Features
from .spec import RowLayout

__all__ = ["Selection", "rows_of", "select"]


@dataclass(frozen=True)
class Selection:
    """What stays of a block.

    Attributes:
        slots: Positions, among the slots that are there now, of those that stay.
        key_values: The same for key-value heads.
        heads: Original numbers of the heads that are kept.
        head_slots: Original numbers of the heads that fill the slots that stay, padding included.
    """

    slots: tuple[int, ...]
    key_values: tuple[int, ...]
    heads: tuple[int, ...]
    head_slots: tuple[int, ...]

    @property
    def padding(self) -> list[int]:
        """Positions, among the slots that stay, of padding."""
        return [position for position, head in enumerate(self.head_slots) if head not in self.heads]


def select(block: AttentionBlock, kept: Collection[int], padding: Collection[int] | None = None) -> Selection:
    """Decide what stays of a block.

    Args:
        block: The block as it is now.
        kept: Original numbers of the heads to keep.
        padding: Original numbers of the heads to keep as padding; chosen here when left out.

    Raises:
        ValueError: The given padding does not fill the groups evenly.
    """
    if not kept:
        return Selection((), (), (), ())
    slots = block.head_slots
    size = len(slots) // block.num_key_value_heads
    groups = [slots[start : start + size] for start in range(0, len(slots), size)]
    kept_groups = [index for index, group in enumerate(groups) if set(group) & set(kept)]
    if padding is None:
        most = max(len(set(groups[index]) & set(kept)) for index in kept_groups)
        padding = {
            head
            for index in kept_groups
            for head in _fill(groups[index], kept, most - len(set(groups[index]) & set(kept)))
        }
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


def _fill(group: Sequence[int], kept: Collection[int], missing: int) -> list[int]:
    return [head for head in group if head not in kept][:missing]


def rows_of(block: AttentionBlock, layout: RowLayout, selection: Selection) -> Features:
    """Return the rows of a projection that stay."""
    stays = {"q": set(selection.slots), "k": set(selection.key_values), "v": set(selection.key_values)}
    order = _row_blocks(layout, len(block.head_slots), block.num_key_value_heads)
    return Features([i for i, (kind, head) in enumerate(order) if head in stays[kind]], block.head_dim)


def _row_blocks(layout: RowLayout, num_heads: int, num_key_value_heads: int) -> list[tuple[str, int]]:
    """Say which head each block of ``head_dim`` rows belongs to, in the order of the rows."""
    queries = [("q", head) for head in range(num_heads)]
    keys = [("k", head) for head in range(num_key_value_heads)]
    values = [("v", head) for head in range(num_key_value_heads)]
    if layout in ("hqkv", "gqkv"):
        size = num_heads // num_key_value_heads
        return [
            row_block
            for group in range(num_key_value_heads)
            for row_block in (*queries[group * size : (group + 1) * size], keys[group], values[group])
        ]
    return [row_block for kind in layout for row_block in {"q": queries, "k": keys, "v": values}[kind]]
