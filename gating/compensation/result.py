"""The report of a compensation."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Compensated:
    """The change of one block: relative squared errors of the stream behind it on held-out positions.

    Attributes:
        name: Name of the block in the dense model.
        before: Error with the weights that it had, after all blocks before it were compensated.
        after: Error with the solution.
        is_changed: Whether the weights are the solution: they stay where the error would grow.
    """

    name: str
    before: float
    after: float
    is_changed: bool


@dataclass(frozen=True)
class CompensationReport:
    """The errors of a compensation, by block and for the outputs.

    Attributes:
        blocks: The blocks that have lost units, in the order of the forward pass.
        left_alone: Reasons, by the names of the blocks that have lost units and could not be solved.
        outputs: Relative squared error of the model's outputs on held-out examples, before and after; where it would
            grow, no weight of the model is changed.
        num_positions: Number of tokens, patches or frames that were learned from.
        seconds: Seconds that it took.
    """

    blocks: tuple[Compensated, ...]
    left_alone: dict[str, str]
    outputs: tuple[float, float]
    num_positions: int
    seconds: float

    def __str__(self) -> str:
        """Return a table of the blocks, and a sentence on the outputs."""
        width = max([len(block.name) for block in self.blocks], default=0)
        lines = [
            f"{block.name:<{width}}  {block.before:8.4f} -> {block.after:8.4f}"
            + ("" if block.is_changed else "  (weights kept)")
            for block in self.blocks
        ]
        for reason in dict.fromkeys(self.left_alone.values()):
            names = [name for name, own in self.left_alone.items() if own == reason]
            lines.append(f"Left alone: {names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}: {reason}.")
        before, after = self.outputs
        lines.append(
            f"The outputs of the dense model are missed by {before:.4f} before and {after:.4f} after it, on held-out "
            f"examples; learned from {self.num_positions:,} positions in {self.seconds:.0f} s."
        )
        return "\n".join(lines)
