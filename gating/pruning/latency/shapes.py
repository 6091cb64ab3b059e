"""Shapes of the compact copies that are timed: as few as tell units from open blocks, then such as a search chooses."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import cycle

import torch
from torch import Tensor

from gating.gates import HeadGates
from gating.units import UnitName

__all__ = ["timed_shapes"]

# Factors of the share that consecutive blocks keep: chosen gates leave blocks of odd widths, too.
_UNEVEN = (0.7, 1.3, 1.0)
# Copies of mixed shapes: their number, how likely a block is empty, and the largest share that an open one keeps.
_NUM_MIXED, _EMPTY, _MOST = 16, (0.4, 0.0, 0.6, 0.2), (0.5, 0.25, 1.0)


def timed_shapes(gates: HeadGates) -> list[tuple[str, Tensor]]:
    """Return the shapes that are timed, in words and as masks of gates, ``[num_gates]``.

    A fit needs twice as many as there are units and one more, which come first.
    """
    shapes = [(str(shape), shape.keep(gates)) for shape in _shapes(gates)]
    return [*shapes, *((f"mixed shape {number}", kept) for number, kept in enumerate(_mixed(gates), start=1))]


@dataclass(frozen=True)
class _Shape:
    """Shape of a copy that is timed.

    Attributes:
        shares: Share of the gates of each unit that its open blocks keep, by the name of the unit.
        every: For each unit, every how many-th of its blocks is open; 1 for all of them.
    """

    shares: Mapping[UnitName, float]
    every: Mapping[UnitName, int]

    def keep(self, gates: HeadGates) -> Tensor:
        """Return the mask of the first gates of each open block, and of at least one gate of each unit."""
        kept, missing, seen = [], set(gates.units), Counter[UnitName]()
        factors = {unit: cycle(_UNEVEN) for unit in gates.units}
        for size, unit in zip(gates.block_sizes, gates.block_units, strict=True):
            share = self.shares[unit]
            number = min(size, round(size * share * (1 if share == 1 else next(factors[unit]))))
            number = number if seen[unit] % self.every[unit] == 0 else 0
            seen[unit] += 1
            number = number or int(unit in missing)
            missing.discard(unit)
            kept.append(torch.arange(size) < number)
        return torch.cat(kept)

    def __str__(self) -> str:
        """Return the shape in words, for a progress bar."""
        words = (f"{self.shares[unit] / self.every[unit]:.0%} of the {unit}" for unit in self.shares)
        return ", ".join(words)


def _shapes(gates: HeadGates) -> Iterator[_Shape]:
    """Yield the regular shapes; the fit needs those that come first."""

    def shape(share: float, *, every: int = 1, one: UnitName = "", of_one: float = 0.0, every_one: int = 1) -> _Shape:
        units = gates.units
        return _Shape(
            {unit: of_one if unit == one else share for unit in units},
            {unit: every_one if unit == one else every for unit in units},
        )

    yield shape(0.0)
    for unit in gates.units:
        yield shape(0.5, one=unit, of_one=1.0, every_one=2)
    for unit in gates.units:
        yield shape(0.5, one=unit, of_one=1.0)
    yield shape(0.5, every=2)
    yield shape(0.25)
    for unit in gates.units:
        yield shape(0.5, one=unit, of_one=0.0)


def _mixed(gates: HeadGates) -> Iterator[Tensor]:
    """Yield masks as those of a search: some blocks are empty, and others keep different numbers."""
    generator = torch.Generator().manual_seed(0)
    for empty, most, _ in zip(cycle(_EMPTY), cycle(_MOST), range(_NUM_MIXED), strict=False):
        drawn = torch.rand(len(gates.block_sizes), 2, generator=generator).tolist()
        counts = [
            0 if first < empty else max(1, round(most * size * second))
            for size, (first, second) in zip(gates.block_sizes, drawn, strict=True)
        ]
        counts[0] = counts[0] if any(counts) else 1
        yield torch.cat([torch.arange(size) < count for size, count in zip(gates.block_sizes, counts, strict=True)])
