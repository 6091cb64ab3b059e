"""Parts of the gates that share a limit each."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import Literal

import torch
from torch import Tensor

from gating.errors import InputError
from gating.gates import HeadGates
from gating.gates.counts import GatedBlock
from gating.objectives.choose import choose, least_size, sums_of_layers
from gating.units import UNITS, UnitName

# Stands in place of a unit's name for a limit that is a share of the cost of all units, for which they compete.
COST = "cost"


@dataclass(frozen=True, eq=False)
class Part:
    """Gates that share a limit: all of them, those of a kind of attention, or those of a tower.

    A limit of units is met; one of ``cost`` is a share, which is not exceeded. ``sizes`` are those of the gates in the
    limit, 0 for padding, and ``share`` is their part in the cost of all gates. ``emptied`` is the share in the limit
    that each layer has without any gate. If all layers of a kind keep equally many, ``matrices`` has the positions
    within the part of gates of one size, ``[num_layers, num_gates_per_layer]`` each.
    """

    unit: UnitName
    kind: str | None
    gates: tuple[int, ...]
    sizes: tuple[float, ...]
    limit: float
    units: tuple[int, ...]
    layers: tuple[int, ...]
    least: tuple[int, ...]
    share: float = 1.0
    emptied: tuple[float, ...] = ()
    matrices: tuple[Tensor, ...] = ()

    @property
    def is_weighed(self) -> bool:
        """Whether a search weighs gates by their units or cost over the mean; otherwise it counts units."""
        return self.unit == COST or UNITS[self.unit].is_weighed

    @cached_property
    def total(self) -> float:
        """Number of units of all gates of the part; 1 for a share of cost."""
        return 1.0 if self.unit == COST else sum(self.sizes)

    def choose(self, scores: Tensor, limit: float | None = None) -> Tensor:
        """Return the best gates within the limit, or another one, a boolean tensor ``[num_gates_of_part]``.

        Gates that their layers need come first, then all others down the scores, which are per unit of size, while they
        fit. Without minima this is the fractional optimum but for gates that do not fit, and no other fits the rest. A
        number is met if these gates can keep it.
        """
        limit = self.limit if limit is None else limit
        kept, needed = self._choose(scores, limit), 0.0
        # What layers without any gate need is known once they are chosen.
        while self.emptied and (found := self._needed_without(kept)) > needed:
            kept, needed = self._choose(scores, limit - found), found
        return kept

    def _needed_without(self, kept: Tensor) -> float:
        """Return the share in the limit of the layers that keep no gate."""
        left = {layer for layer, is_kept in zip(self.layers, kept.tolist(), strict=True) if is_kept}
        return sum(share for layer, share in enumerate(self.emptied) if layer not in left)

    def _choose(self, scores: Tensor, limit: float) -> Tensor:
        items, ranks = self._items, list[Tensor]()
        is_met = self.unit != COST and limit == int(limit) and self.can_keep(int(limit))
        of_items = scores
        if self.matrices:
            ranks = [rank for matrix in self.matrices for rank in by_rank(matrix.to(scores.device), scores).unbind(1)]
            sizes = torch.tensor(self.sizes, device=scores.device, dtype=scores.dtype)
            of_items = torch.stack([(scores[rank] * sizes[rank]).sum() / sizes[rank].sum() for rank in ranks])
        taken = choose(of_items, items.sizes, limit, items.layers, items.least, items.units, is_met)
        positions = [gate for item in taken for gate in ranks[item].tolist()] if ranks else taken
        chosen = torch.tensor(positions, dtype=torch.long, device=scores.device)
        return torch.zeros_like(scores, dtype=torch.bool).index_fill(0, chosen, True)

    def nearest(self, number: float) -> float:
        """Return the number of units nearest to ``number`` that these gates can keep, but not 0; a share as it is."""
        if self.unit == COST:
            return number
        if self.can_keep(round(number)):
            return round(number)
        return min(self.neighbors(round(number)), key=lambda near: (abs(near - number), near))

    def can_keep(self, number: int) -> bool:
        """Return whether some of the gates have exactly a number of units, and the minimum of each layer."""
        return number > 0 and bool(self._items._sums >> number & 1)

    def neighbors(self, number: int) -> list[int]:
        """Return the nearest numbers of units below and above that these gates can keep, without 0."""
        sums = self._items._sums
        below = (sums & ((1 << number) - 1)).bit_length() - 1
        higher = sums >> (number + 1)
        above = number + (higher & -higher).bit_length()
        return [near for near in (below if below > 0 else None, above if higher else None) if near is not None]

    @cached_property
    def smallest(self) -> float:
        """Smallest limit: of a number the minima, 0 without any; of a share at least the smallest gate."""
        items = self._items
        if self.unit != COST:
            return (items._sums & -items._sums).bit_length() - 1
        with_size = [one for one in zip(items.layers, items.sizes, items.units, strict=True) if one[1]]
        least = max(least_size(with_size, items.least), min(size for _, size, _ in with_size))
        # Layers with a minimum, and equal layers, keep a gate; of others, the smallest gate is in one.
        empty = [share for share, number in zip(self.emptied, self.least, strict=False) if not number]
        if self.matrices or not empty:
            return least
        return least + sum(empty) - (0.0 if any(self.least) else min(empty))

    @cached_property
    def _items(self) -> "Part":
        """The part whose gates are chosen: this one, or for equal layers one with an item for each rank in a layer."""
        if not self.matrices:
            return self
        kinds = [self.layers[int(matrix[0, 0])] for matrix in self.matrices]
        columns = [(kind, column) for kind, matrix in zip(kinds, self.matrices, strict=True) for column in matrix.T]
        num_layers = dict(zip(kinds, map(len, self.matrices), strict=True))
        places = {kind: place for place, kind in enumerate(num_layers)}
        return replace(
            self,
            sizes=tuple(sum(self.sizes[gate] for gate in column.tolist()) for _, column in columns),
            units=tuple(sum(self.units[gate] for gate in column.tolist()) for _, column in columns),
            layers=tuple(places[kind] for kind, _ in columns),
            least=tuple(self.least[kind] * number for kind, number in num_layers.items()),
            matrices=(),
        )

    @cached_property
    def _sums(self) -> int:
        return sums_of_layers(Counter(zip(self.layers, map(int, self.sizes), strict=True)), self.least)


def by_rank(gates: Tensor, scores: Tensor) -> Tensor:
    """Return the gates of each layer, ``[num_layers, num_gates_per_layer]``, with the best one first."""
    return gates.gather(1, scores[gates].argsort(dim=1, descending=True, stable=True))


def amount_of(parts: Sequence[Part], numbers: Sequence[float]) -> float:
    """Return numbers of parts as one: of units, or for several units the share of the cost of all gates."""
    if len({part.unit for part in parts}) == 1:
        return sum(numbers)
    return sum(part.share * number / part.total for part, number in zip(parts, numbers, strict=True))


def sizes_of(parts: Sequence[Part], *, like: Tensor) -> Tensor:
    """Return the size of each gate in the limit of its part, ``[num_gates]``, float64, on the CPU."""
    sizes = torch.zeros(like.shape, dtype=torch.float64, device="cpu")
    for part in parts:
        sizes[list(part.gates)] = torch.tensor(part.sizes, dtype=torch.float64, device="cpu")
    return sizes


def chosen(parts: Sequence[Part], scores: Tensor, limits: Sequence[float] | None = None) -> Tensor:
    """Return the best gates of all parts, a boolean tensor ``[num_gates]``; the arguments are those of ``choose``."""
    kept = torch.zeros_like(scores, dtype=torch.bool)
    for part, limit in zip(parts, limits or [part.limit for part in parts], strict=True):
        gates = torch.tensor(part.gates, device=scores.device)
        kept[gates] = part.choose(scores.detach()[gates], limit)
    return kept


def parts_of(
    gates: HeadGates,
    *,
    unit: UnitName,
    shares: Sequence[float] = (),
    emptied: Sequence[float] = (),
    by: Literal["kind", "tower"] | None = None,
    min_per_layer: int = 0,
    uniform: bool = False,
) -> list[Part]:
    """Return the parts of the gates with a unit, which have no limit yet, in the order of their first blocks.

    The ``unit`` may be ``cost`` of all units; ``shares`` are those of each gate in the cost of all, and ``emptied``
    those that each block has without any gate.
    """
    groups: dict[str | None, list[GatedBlock]] = {}
    for block in gates.gated_blocks():
        if unit in (COST, block.unit):
            group = {"kind": block.kind, "tower": block.tower, None: None}[by]
            groups.setdefault(group, []).append(block)
    parts = []
    for group, blocks in groups.items():
        indices = [gate for block in blocks for gate in block.gates]
        units = tuple(gates.units_per_gate[gate] for gate in indices)
        parts.append(
            Part(
                unit=unit,
                kind=group,
                gates=tuple(indices),
                sizes=tuple(shares[gate] for gate in indices) if unit == COST else units,
                limit=0.0,
                units=units,
                layers=tuple(layer for layer, block in enumerate(blocks) for _ in block.gates),
                least=tuple(_least_of(block, gates, min_per_layer) for block in blocks),
                share=sum(shares[gate] for gate in indices) if shares else 1.0,
                emptied=tuple(emptied) if unit == COST else (),
                matrices=tuple(_matrices(blocks, gates.units_per_gate)) if uniform else (),
            )
        )
    return parts


def _least_of(block: GatedBlock, gates: HeadGates, min_per_layer: int) -> int:
    least = min_per_layer if block.unit == "heads" else 0
    present = sum(gates.units_per_gate[gate] for gate in block.gates)
    if present < least:
        raise InputError(f"min_per_layer={least} is more than the {present} {block.unit} of {block.name}.")
    return least


def _matrices(blocks: Sequence[GatedBlock], units: Sequence[int]) -> Iterator[Tensor]:
    """Yield the positions of the gates of each kind and size, ``[num_layers, num_gates_per_layer]``."""
    starts = accumulate((len(block.gates) for block in blocks), initial=0)
    places = {block.name: range(start, start + len(block.gates)) for block, start in zip(blocks, starts, strict=False)}
    for kind in dict.fromkeys(block.kind for block in blocks):
        own = [block for block in blocks if block.kind == kind]
        sizes = [[units[gate] for gate in block.gates] for block in own]
        for block, of_block in zip(own, sizes, strict=True):
            if sorted(of_block) != sorted(sizes[0]):
                raise InputError(
                    f"uniform=true needs equal layers: {own[0].name} has {sum(sizes[0])} {block.unit} with "
                    f"{len(sizes[0])} gates, and {block.name} has {sum(of_block)} with {len(of_block)}."
                )
        for size in sorted(set(sizes[0]) - {0}):
            rows = [
                [place for place, own_size in zip(places[block.name], of_block, strict=True) if own_size == size]
                for block, of_block in zip(own, sizes, strict=True)
            ]
            yield torch.tensor(rows, device="cpu")
