"""The table of all units, and the blocks of a model by the units that are asked for."""

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor, nn

from gating.errors import RemedyError
from gating.structure.blocks import Block
from gating.structure.feed_forward import DEFAULT_GROUP_SIZE
from gating.units.heads import HEADS
from gating.units.neurons import NEURONS
from gating.units.unit import Unit, UnitName

__all__ = ["UNITS", "check_units", "find_blocks", "unit_of"]

# Each unit by its name, in the order of their gates.
UNITS: dict[UnitName, Unit[Any]] = {unit.name: unit for unit in (HEADS, NEURONS)}


def unit_of(block: Block) -> Unit[Any]:
    """Return the unit of a block."""
    return UNITS[block.unit]


def check_units(units: Collection[str] | str) -> tuple[UnitName, ...]:
    """Return the names of units in the order of the table: ``heads`` first.

    Raises:
        InputError: A kind is unknown, or there is none.

    Example:
        >>> check_units("neurons")
        ('neurons',)
    """
    given = units if isinstance(units, Collection) and not isinstance(units, str) else [units]
    if not given or any(unit not in list(UNITS) for unit in given):
        raise RemedyError(
            f"units={units!r} must be {', '.join(UNITS)} or {'both' if len(UNITS) == 2 else 'several'}, as in ",
            python='units=("heads", "neurons").',
            command="gates.units=[heads,neurons].",
        )
    return tuple(unit for unit in UNITS if unit in given)


def find_blocks(
    model: nn.Module,
    *,
    units: UnitName | Collection[UnitName] = "heads",
    group_size: int | None = DEFAULT_GROUP_SIZE,
    discover: bool = False,
    probe: Mapping[str, Tensor] | None = None,
) -> list[Block]:
    """Find the blocks of a model with some kinds of units: attention blocks first, then feed-forward blocks.

    There is no warning about other modules that look like such blocks. The arguments and errors are those of
    :func:`~gating.discovery.find.find_attention_blocks` and :func:`~gating.discovery.find.find_feed_forward_blocks`.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> model = BertModel(BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=4))
        >>> [block.kind for block in find_blocks(model, units=["heads", "neurons"])]
        ['encoder', 'feed_forward']
    """
    found: list[Block] = []
    for unit in check_units(units):
        found += UNITS[unit].search(model, group_size=group_size, discover=discover, probe=probe)[0]
    return found
