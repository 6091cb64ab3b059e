"""Heads, neurons and parameters of a model, before and after a removal."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

from torch import nn
from typing_extensions import Self

from gating.structure.blocks import Block
from gating.structure.feed_forward import FeedForwardBlock
from gating.structure.layers import count_units, dense_name, iter_blocks, kept_layers, layers_record, original_rows
from gating.units import UNITS, UnitName


@dataclass(frozen=True)
class UnitCounts:
    """Numbers of units, by their names, and of parameters of a model."""

    units: dict[UnitName, int]
    num_parameters: int

    @classmethod
    def of(cls, model: nn.Module) -> "UnitCounts":
        """Count the units and parameters of a model, without its gates."""
        num_gates = sum(parameter.numel() for parameter in getattr(model, "head_gates", nn.Module()).parameters())
        return cls({unit: count_units(model, unit) for unit in UNITS}, num_parameters(model) - num_gates)


@dataclass(frozen=True)
class PruneReport:
    """Units and parameters of a model before and after a removal.

    Attributes:
        before: Numbers of units and parameters before this removal.
        after: Numbers of remaining units and parameters.
        kept: For each unit, the original numbers of the remaining ones of each block.
        unproven: Names of the blocks that have lost units without a proof: the compared outputs do not depend on them,
            or no outputs were compared.
        kept_layers: Original numbers of the remaining layers of each list that layers have left, by its name. All names
            of blocks are those in the original model.
    """

    before: UnitCounts
    after: UnitCounts
    kept: dict[UnitName, dict[str, tuple[int, ...]]]
    unproven: tuple[str, ...] = ()
    kept_layers: dict[str, tuple[int, ...]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        model: nn.Module,
        before: UnitCounts,
        blocks: Iterable[Block],
        *,
        unproven: Iterable[str] = (),
        **others: Any,
    ) -> Self:
        """Return the report on a model that has lost units.

        The blocks are those that could lose some, as they were before, and unproven ones have their names in the model;
        neurons are counted in their groups.
        """
        by_name = {block.name: block for block in blocks}
        record = layers_record(model)
        kept = {
            unit: dict(original_rows(record, unit, _present_units(model, unit, by_name), removed=lambda _: ()))
            for unit in UNITS
        }
        unproven = tuple(dense_name(record, name) for name in unproven)
        return cls(before=before, after=UnitCounts.of(model), kept=kept, unproven=unproven, **others)

    def __str__(self) -> str:
        """Return a table: the remaining heads of each block, or its number of groups of neurons, and the totals."""
        rows = [
            (name, f"{len(ids)} head{'s' * (len(ids) != 1)}", " ".join(map(str, ids)))
            for name, ids in self.kept_heads.items()
        ]
        rows += [(name, f"{len(ids)} group{'s' * (len(ids) != 1)}", "") for name, ids in self.kept_neurons.items()]
        totals = [(unit, self.after.units[unit], before) for unit, before in self.before.units.items() if before]
        totals.append(("parameters", self.after.num_parameters, self.before.num_parameters))
        width = max(len(row[0]) for row in [*rows, *totals])
        lines = [f"{name:<{width}}  {count:>9}  {ids}".rstrip() for name, count, ids in rows]
        lines += [f"{name:<{width}}  {one:,} of {all:,} ({100 * one / all:.1f} %)" for name, one, all in totals]
        lines += [f"{name:<{width}}  layers {', '.join(map(str, ids))} stay" for name, ids in self.kept_layers.items()]
        return "\n".join([*lines, *filter(None, [unproven_note(self.unproven)])])

    def without_layers(self, model: nn.Module) -> Self:
        """Return the report on a model that layers have left since, with none of the units of these layers."""
        gone = {unit: layers_record(model).get(unit, {}) for unit in self.kept}
        kept = {
            unit: {name: () if name in gone[unit] else units for name, units in by_name.items()}
            for unit, by_name in self.kept.items()
        }
        return replace(self, after=UnitCounts.of(model), kept=kept, kept_layers=kept_layers(model))

    @property
    def kept_heads(self) -> dict[str, tuple[int, ...]]:
        """For each attention block, the original numbers of its remaining heads."""
        return self.kept["heads"]

    @property
    def kept_neurons(self) -> dict[str, tuple[int, ...]]:
        """The original numbers of the remaining groups of feed-forward blocks.

        For each block whose neurons had gates, were pruned by hand or have lost any before; others are in no groups.
        """
        return self.kept["neurons"]

    @property
    def num_heads(self) -> int:
        """Number of remaining heads."""
        return self.after.units["heads"]

    @property
    def num_heads_before(self) -> int:
        """Number of heads before this removal."""
        return self.before.units["heads"]

    @property
    def num_neurons(self) -> int:
        """Number of remaining neurons."""
        return self.after.units["neurons"]

    @property
    def num_neurons_before(self) -> int:
        """Number of neurons before this removal."""
        return self.before.units["neurons"]

    @property
    def num_parameters(self) -> int:
        """Number of remaining parameters."""
        return self.after.num_parameters

    @property
    def num_parameters_before(self) -> int:
        """Number of parameters before this removal."""
        return self.before.num_parameters


def _present_units(
    model: nn.Module, unit: UnitName, before: Mapping[str, Block]
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the original numbers of the present units of each block, by its name.

    Of neurons, these are groups, in their size before, of the blocks that could lose neurons or have lost some.
    """
    for block in iter_blocks(model, unit):
        if isinstance(block, FeedForwardBlock) and block.name in before:
            block = block.regrouped(cast("FeedForwardBlock", before[block.name]).group_size)
        elif isinstance(block, FeedForwardBlock) and block.num_neurons == block.width_before:
            continue
        yield block.name, block.unit_ids


def num_parameters(model: nn.Module) -> int:
    """Return the number of parameters of a model; shared parameters count once."""
    return sum(parameter.numel() for parameter in model.parameters())


def unproven_note(unproven: Sequence[str]) -> str:
    """Return the sentence about blocks for which the proof of a removal says nothing; empty without any."""
    if not unproven:
        return ""
    names = ", ".join([*unproven[:2], *(["..."] if len(unproven) > 2 else [])])
    return (
        f"No output that was compared depends on {len(unproven)} of the blocks that have lost units, so nothing is "
        f"proven of: {names}"
    )
