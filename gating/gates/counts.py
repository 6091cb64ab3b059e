"""Numbers and costs of the units that gates stand for, and a table of them."""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from gating.gates.hard_concrete import FullPrecision
from gating.structure.blocks import Block, group_labels
from gating.units import UNITS, UnitName, check_units


class GatedBlock(NamedTuple):
    """A block with gates, whose group is its tower in a model with several, else its kind."""

    name: str
    kind: str
    unit: UnitName
    tower: str
    group: str
    gates: range


class GatedUnits(FullPrecision):
    """The part of :class:`~gating.gates.HeadGates` that does not change: their blocks, and the units of each gate.

    Methods that take the name of a unit, such as ``neurons``, count zero for one that has no gates.
    """

    def __init__(self, blocks: Sequence[Block], *, group_queries: bool) -> None:
        """Count the units of each gate of some blocks."""
        super().__init__()
        self.group_queries = group_queries
        self.block_names = [block.name for block in blocks]
        self.block_kinds = [block.kind for block in blocks]
        self.block_units = [block.unit for block in blocks]
        self.block_towers = [block.tower for block in blocks]
        self.block_groups = group_labels(blocks)
        self.units = check_units(set(self.block_units))
        group_sizes = (getattr(block, "group_size", None) for block in blocks)
        self.group_size = next((size for size in group_sizes if size is not None), None)
        by_block = [block.gate_sizes(group_queries=group_queries) for block in blocks]
        self.block_sizes = [len(sizes) for sizes in by_block]
        self.gate_sizes = tuple(size for sizes in by_block for size in sizes)
        self.least_cached = [getattr(block, "least_cache_width", 0) for block in blocks]
        self.units_per_gate = tuple(size.num_units for size in self.gate_sizes)
        by_gate = zip(self.block_units, self.block_sizes, strict=True)
        #: Unit of each gate.
        self.unit_of_gate = tuple(unit for unit, size in by_gate for _ in range(size))
        pairs = list(zip(self.unit_of_gate, self.units_per_gate, strict=True))
        self.counts = {unit: tuple(count if own == unit else 0 for own, count in pairs) for unit in UNITS}
        # They are on the CPU, since some devices lack double precision.
        parameters, macs = zip(*((size.num_parameters, size.macs()) for size in self.gate_sizes), strict=True)
        self.parameters_per_gate = torch.tensor(parameters, dtype=torch.float64, device="cpu")
        self.macs_per_gate = torch.tensor(macs, dtype=torch.float64, device="cpu")

    def gated_blocks(self) -> list[GatedBlock]:
        """Return the blocks with gates, in their order."""
        bounds = pairwise(accumulate(self.block_sizes, initial=0))
        places = (range(start, end) for start, end in bounds)
        names = self.block_names, self.block_kinds, self.block_units, self.block_towers, self.block_groups
        return [GatedBlock(*one) for one in zip(*names, places, strict=True)]

    def total(self, unit: UnitName) -> int:
        """Return the number of gated units."""
        return sum(self.counts[unit])

    def is_of(self, unit: UnitName) -> Tensor:
        """Return the mask of the gates of a unit, ``[num_gates]``, on the CPU."""
        return torch.tensor([own == unit for own in self.unit_of_gate], device="cpu")

    @property
    def num_heads(self) -> int:
        """Number of gated heads."""
        return self.total("heads")

    @property
    def num_neurons(self) -> int:
        """Number of gated neurons."""
        return self.total("neurons")

    def set_macs(self, macs: Tensor) -> None:
        """Set the multiply-accumulates of each gate's units for one example, ``[num_gates]``."""
        self.macs_per_gate = macs.cpu().double()


def table_of(units: GatedUnits, is_open: Tensor, prob_open: Tensor) -> list[str]:
    """Return the lines of a table of gates: open units of each block and in all, and the parameters they stand for."""
    sizes, parameters = torch.tensor(units.units_per_gate, dtype=torch.float64, device="cpu"), units.parameters_per_gate
    is_open, prob_open = is_open.cpu(), prob_open.cpu()
    left = parameters * (is_open & (sizes > 0))
    # Of each gate: its units, those that are open and expected to be, its parameters, and those of open units.
    numbers = torch.stack([sizes, sizes * is_open, sizes * prob_open, parameters, left], dim=1)
    columns = zip(units.block_names, units.block_kinds, units.block_units, strict=True)
    groups = [*zip(columns, numbers.split(units.block_sizes), strict=True)]
    groups += [((f"all {unit}", "", unit), numbers[units.is_of(unit)]) for unit in units.units]
    rows = [("block", "kind", "gates", "open", "expected", "parameters")]
    for (name, kind, unit), own in groups:
        total, num_open, expected, present, kept = own.sum(dim=0).tolist()
        cells = f"{num_open:,.0f} of {total:,.0f} {unit}", f"{expected:,.2f}", f"{kept:,.0f} of {present:,.0f}"
        rows.append((name, kind, str(len(own)), *cells))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    # The first two columns to the left, numbers to the right.
    line = "  ".join(f"{{:{'<' if index < 2 else '>'}{width}}}" for index, width in enumerate(widths))
    return [line.format(*row) for row in rows]
