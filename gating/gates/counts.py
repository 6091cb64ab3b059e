"""How many heads and neurons gates stand for, and how many of them are open."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gating.discovery.find import Unit
from gating.gates.attachment import Attachment
from gating.gates.full_precision import FullPrecision

__all__ = ["GateCounts"]


class GateCounts(FullPrecision):
    """The part of :class:`~gating.gates.HeadGates` that counts heads, neurons and parameters."""

    heads_per_gate: tuple[int, ...]
    neurons_per_gate: tuple[int, ...]
    parameters_per_gate: Tensor
    log_alpha: nn.Parameter
    units: tuple[Unit, ...]
    block_names: list[str]
    block_sizes: list[int]
    block_kinds: list[str]
    attachment: Attachment | None
    _num_heads: Tensor
    _num_neurons: Tensor

    def values(self) -> Tensor:
        """Return the deterministic value of every gate, ``[num_gates]``: 0 is closed, 1 fully open."""
        raise NotImplementedError

    def prob_open(self) -> Tensor:
        """Return for every gate the probability that it is not zero, ``[num_gates]``; differentiable."""
        raise NotImplementedError

    @property
    def num_heads(self) -> int:
        """Number of gated heads."""
        return sum(self.heads_per_gate)

    @property
    def num_neurons(self) -> int:
        """Number of gated neurons."""
        return sum(self.neurons_per_gate)

    def num_open(self) -> int:
        """Count the heads whose gate's deterministic value is not zero."""
        return int(((self.values() > 0) * self._num_heads).sum())

    def num_open_neurons(self) -> int:
        """Count the neurons whose gate's deterministic value is not zero."""
        return int(((self.values() > 0) * self._num_neurons).sum())

    def open_by_block(self) -> dict[str, int]:
        """Count the heads or neurons of each block whose gate's deterministic value is not zero, by its name."""
        counts = ((self.values() > 0) * (self._num_heads + self._num_neurons)).split(self.block_sizes)
        return {name: int(count.sum()) for name, count in zip(self.block_names, counts, strict=True)}

    def expected_open(self) -> Tensor:
        """Return the expected number of open heads, a scalar; differentiable."""
        return (self.prob_open() * self._num_heads).sum()

    def expected_neurons(self) -> Tensor:
        """Return the expected number of open neurons, a scalar; differentiable."""
        return (self.prob_open() * self._num_neurons).sum()

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
        units = self._num_heads + self._num_neurons
        by_gate = (units, units * (self.values() > 0), units * self.prob_open())
        numbers = torch.stack([one.cpu().double() for one in by_gate], dim=1)
        is_open = (numbers[:, 1] > 0).double().unsqueeze(1)
        parameters = self.parameters_per_gate.unsqueeze(1)
        numbers = torch.cat([numbers, parameters, parameters * is_open], dim=1)
        by_block = numbers.split(self.block_sizes)
        rows: list[tuple[str, ...]] = [("block", "kind", "gates", "open", "expected", "parameters")]
        for name, kind, block in zip(self.block_names, self.block_kinds, by_block, strict=True):
            rows.append(_row(name, kind, block, unit=_unit_of(kind)))
        for unit in self.units:
            of_unit = [block for kind, block in zip(self.block_kinds, by_block, strict=True) if _unit_of(kind) == unit]
            rows.append(_row(f"all {unit}", "", torch.cat(of_unit), unit=unit))
        lines = _aligned(rows)
        if self.attachment is not None:
            # The gates are parameters of the model.
            num_all = sum(weight.numel() for weight in self.attachment.model.parameters()) - self.log_alpha.numel()
            left = num_all - int((parameters * (1 - is_open)).sum())
            share = f"about {left:,} of {num_all:,} parameters ({left / num_all:.1%}".replace("%", " %")
            lines.append(f"Without its closed units, the model has {share}).")
        return "\n".join(lines)


def _unit_of(kind: str) -> Unit:
    return "neurons" if kind == "feed_forward" else "heads"


def _row(name: str, kind: str, numbers: Tensor, *, unit: str) -> tuple[str, ...]:
    """Return the cells of a row.

    Args:
        name: Name of the block.
        kind: Its kind.
        numbers: Units, open and expected ones, parameters, and those of open units of each gate, ``[num_gates, 5]``.
        unit: ``heads`` or ``neurons``.
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
