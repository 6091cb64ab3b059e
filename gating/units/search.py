"""The blocks of a model by the units that are asked for."""

from collections.abc import Collection, Mapping, Sequence

from torch import Tensor, nn

from gating.discovery.find import search_attention, search_feed_forward
from gating.discovery.ungated import UngatedModules
from gating.structure.attention import iter_attention_blocks
from gating.structure.blocks import Block
from gating.structure.feed_forward import DEFAULT_GROUP_SIZE, FeedForwardBlock, iter_feed_forward_blocks
from gating.units.words import UnitName, check_units

__all__ = ["count_units", "find_blocks", "present_units", "search_blocks"]


def search_blocks(
    model: nn.Module,
    unit: UnitName,
    *,
    group_size: int | None = DEFAULT_GROUP_SIZE,
    discover: bool = False,
    probe: Mapping[str, Tensor] | None = None,
) -> tuple[Sequence[Block], list[UngatedModules]]:
    """Return the blocks of a model that can lose units, and the other modules that look like one.

    The arguments and errors are those of :func:`~gating.discovery.find.find_attention_blocks` and
    :func:`~gating.discovery.find.find_feed_forward_blocks`.
    """
    if unit == "heads":
        return search_attention(model, discover=discover, probe=probe)
    return search_feed_forward(model, group_size=group_size, discover=discover, probe=probe)


def find_blocks(
    model: nn.Module,
    *,
    units: UnitName | Collection[UnitName] = "heads",
    group_size: int | None = DEFAULT_GROUP_SIZE,
    discover: bool = False,
    probe: Mapping[str, Tensor] | None = None,
) -> list[Block]:
    """Find the blocks of a model with some kinds of units: attention blocks first, then feed-forward blocks.

    There is no warning about other modules that look like such blocks. See :func:`search_blocks`.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> model = BertModel(BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=4))
        >>> [block.kind for block in find_blocks(model, units=["heads", "neurons"])]
        ['encoder', 'feed_forward']
    """
    found: list[Block] = []
    for unit in check_units(units):
        found += search_blocks(model, unit, group_size=group_size, discover=discover, probe=probe)[0]
    return found


def count_units(model: nn.Module, unit: UnitName) -> int:
    """Return the number of present units of a model; 0 if its blocks are not known."""
    blocks = iter_attention_blocks(model) if unit == "heads" else iter_feed_forward_blocks(model)
    return sum(block.size for block in blocks)


def present_units(model: nn.Module, unit: UnitName, before: Mapping[str, Block]) -> dict[str, tuple[int, ...]]:
    """Return the original numbers of the present units of each block, by its name.

    Of neurons, these are groups, in their size before, of the blocks that could lose neurons or have lost some.

    Args:
        model: A model that has lost units.
        unit: The unit.
        before: The blocks that could lose units, as they were before, by name.
    """
    if unit == "heads":
        return {block.name: block.head_ids for block in iter_attention_blocks(model)}
    sizes = {name: block.group_size for name, block in before.items() if isinstance(block, FeedForwardBlock)}
    return {
        block.name: block.regrouped(sizes.get(block.name, block.group_size)).group_ids
        for block in iter_feed_forward_blocks(model)
        if block.name in sizes or block.num_neurons < block.width_before
    }
