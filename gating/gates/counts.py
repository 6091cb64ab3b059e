"""How many units gates stand for, and how many of them are open."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gating.gates.attachment import Attachment
from gating.gates.full_precision import FullPrecision
from gating.units import UNITS, GateSize, UnitName

__all__ = ["GateCounts"]


class GateCounts(FullPrecision):
    """The part of :class:`~gating.gates.HeadGates` that counts units and parameters.

    Methods that take the name of a unit, such as ``neurons``, count zero for one that has no gates.
    """

    gate_sizes: tuple[GateSize, ...]
    parameters_per_gate: Tensor
    log_alpha: nn.Parameter
    units: tuple[UnitName, ...]
    block_names: list[str]
    block_sizes: list[int]
    block_kinds: list[str]
    block_units: list[UnitName]
    attachment: Attachment | None

    def values(self) -> Tensor:
        """Return the deterministic value of every gate, ``[num_gates]``: 0 is closed, 1 fully open."""
        raise NotImplementedError

    def prob_open(self) -> Tensor:
        """Return for every gate the probability that it is not zero, ``[num_gates]``; differentiable."""
        raise NotImplementedError

    def count_units(self, blocks: Sequence[Sequence[GateSize]]) -> None:
        """Store the sizes of the gates of each block; :attr:`block_units` must have been set."""
        self.block_sizes = [len(sizes) for sizes in blocks]
        self.gate_sizes = tuple(size for sizes in blocks for size in sizes)
        #: Number of units of each gate, whatever its unit is.
        self.units_per_gate = tuple(size.num_units for size in self.gate_sizes)
        by_gate = zip(self.block_units, self.block_sizes, strict=True)
        #: Unit of each gate.
        self.unit_of_gate = tuple(unit for unit, size in by_gate for _ in range(size))
        self.counts = {unit: self._counts_of(unit) for unit in self.units}
        for unit, counts in self.counts.items():
            self.register_buffer(f"_num_{unit}", torch.tensor(counts, device=self.log_alpha.device), persistent=False)

    def _counts_of(self, unit: UnitName) -> tuple[int, ...]:
        pairs = zip(self.unit_of_gate, self.units_per_gate, strict=True)
        return tuple(count if own == unit else 0 for own, count in pairs)

    @property
    def is_weighed(self) -> bool:
        """Whether a search weighs gates by their units or cost; otherwise it counts the units of the only kind."""
        return len(self.units) > 1 or UNITS[self.units[0]].is_weighed

    def total(self, unit: UnitName) -> int:
        """Return the number of gated units."""
        return sum(self.counts.get(unit, ()))

    def is_of(self, unit: UnitName) -> Tensor:
        """Return the mask of the gates of a unit, ``[num_gates]``, on the CPU."""
        return torch.tensor([own == unit for own in self.unit_of_gate], device="cpu")

    def count_open(self, unit: UnitName) -> int:
        """Count the units whose gate's deterministic value is not zero."""
        return int(((self.values() > 0) * self.get_buffer(f"_num_{unit}")).sum()) if unit in self.units else 0

    def count_expected(self, unit: UnitName) -> Tensor:
        """Return the expected number of open units, a scalar; differentiable."""
        counts = self.get_buffer(f"_num_{unit}") if unit in self.units else torch.zeros_like(self.log_alpha)
        return (self.prob_open() * counts).sum()

    @property
    def heads_per_gate(self) -> tuple[int, ...]:
        """Number of heads of each gate; 0 for a gate of other units."""
        return self._counts_of("heads")

    @property
    def neurons_per_gate(self) -> tuple[int, ...]:
        """Number of neurons of each gate; 0 for a gate of other units."""
        return self._counts_of("neurons")

    @property
    def num_heads(self) -> int:
        """Number of gated heads."""
        return self.total("heads")

    @property
    def num_neurons(self) -> int:
        """Number of gated neurons."""
        return self.total("neurons")

    def num_open(self) -> int:
        """Count the heads whose gate's deterministic value is not zero."""
        return self.count_open("heads")

    def num_open_neurons(self) -> int:
        """Count the neurons whose gate's deterministic value is not zero."""
        return self.count_open("neurons")

    def expected_open(self) -> Tensor:
        """Return the expected number of open heads, a scalar; differentiable."""
        return self.count_expected("heads")

    def open_by_block(self) -> dict[str, int]:
        """Count the units of each block whose gate's deterministic value is not zero, by its name."""
        sizes = torch.tensor(self.units_per_gate, device=self.log_alpha.device)
        counts = ((self.values() > 0) * sizes).split(self.block_sizes)
        return {name: int(count.sum()) for name, count in zip(self.block_names, counts, strict=True)}

    def by_block(self) -> dict[str, Tensor]:
        """Return the deterministic values of each block by its name."""
        return dict(zip(self.block_names, self.values().detach().split(self.block_sizes), strict=True))

    @torch.no_grad()
    def summary(self) -> str:
        """Return a table of the gates: open units of each block and in all, and the parameters they stand for.

        A unit is open if the deterministic value of its gate is not zero; ``expected`` is the number of open units over
        the noise of the gates.

        Example:
            >>> from gating import inject_gates
            >>> from transformers import BertConfig, BertModel
            >>> config = BertConfig(hidden_size=8, num_attention_heads=4, num_hidden_layers=1, vocab_size=10)
            >>> gates = inject_gates(BertModel(config))
            >>> _ = gates.log_alpha.data.copy_(torch.tensor([9.0, -9, -9, 9]))
            >>> print(gates.summary())
            block                           kind     gates          open  expected  parameters
            encoder.layer.0.attention.self  encoder      4  2 of 4 heads      2.00  140 of 280
            all heads                                    4  2 of 4 heads      2.00  140 of 280
            Without its closed units, the model has about 56,692 of 56,832 parameters (99.8 %).
        """
        units = torch.tensor(self.units_per_gate, device=self.log_alpha.device)
        by_gate = (units, units * (self.values() > 0), units * self.prob_open())
        numbers = torch.stack([one.cpu().double() for one in by_gate], dim=1)
        is_open = (numbers[:, 1] > 0).double().unsqueeze(1)
        parameters = self.parameters_per_gate.unsqueeze(1)
        numbers = torch.cat([numbers, parameters, parameters * is_open], dim=1)
        by_block = numbers.split(self.block_sizes)
        rows: list[tuple[str, ...]] = [("block", "kind", "gates", "open", "expected", "parameters")]
        for name, kind, unit, block in zip(self.block_names, self.block_kinds, self.block_units, by_block, strict=True):
            rows.append(_row(name, kind, block, unit=unit))
        rows += [_row(f"all {unit}", "", numbers[self.is_of(unit)], unit=unit) for unit in self.units]
        lines = _aligned(rows)
        if self.attachment is not None:
            # The gates are parameters of the model.
            num_all = sum(weight.numel() for weight in self.attachment.model.parameters()) - self.log_alpha.numel()
            left = num_all - int((parameters * (1 - is_open)).sum())
            share = f"about {left:,} of {num_all:,} parameters ({left / num_all:.1%}".replace("%", " %")
            lines.append(f"Without its closed units, the model has {share}).")
        return "\n".join(lines)


def _row(name: str, kind: str, numbers: Tensor, *, unit: UnitName) -> tuple[str, ...]:
    """Return the cells of a row.

    The numbers are units, open and expected ones, parameters, and those of open units of each gate, ``[num_gates, 5]``.
    """
    units, num_open, expected, parameters, left = numbers.sum(dim=0).tolist()
    of_all = f"{num_open:,.0f} of {units:,.0f} {unit}"
    return name, kind, str(len(numbers)), of_all, f"{expected:,.2f}", f"{left:,.0f} of {parameters:,.0f}"


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Return the rows of a table as lines: the first two columns to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if index > 1 else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
