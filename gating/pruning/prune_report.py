"""Heads, neurons and parameters of a model, before and after a removal."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from torch import nn

from gating.structure.blocks import iter_attention_blocks
from gating.structure.feed_forward import Block, FeedForwardBlock, iter_feed_forward_blocks

__all__ = ["PruneReport", "UnitCounts", "num_parameters", "unproven_note"]


@dataclass(frozen=True)
class UnitCounts:
    """Number of heads, neurons and parameters of a model."""

    num_heads: int
    num_neurons: int
    num_parameters: int

    @classmethod
    def of(cls, model: nn.Module) -> "UnitCounts":
        """Count the units and parameters of a model, without its gates."""
        num_gates = sum(parameter.numel() for parameter in getattr(model, "head_gates", nn.Module()).parameters())
        return cls(
            num_heads=sum(block.num_heads for block in iter_attention_blocks(model)),
            num_neurons=sum(block.num_neurons for block in iter_feed_forward_blocks(model)),
            num_parameters=num_parameters(model) - num_gates,
        )


@dataclass(frozen=True)
class PruneReport:
    """Heads, neurons and parameters of a model before and after a removal.

    Attributes:
        kept_heads: For each attention block, the original numbers of its remaining heads.
        num_heads: Number of remaining heads.
        num_heads_before: Number of heads before this removal.
        num_parameters: Number of remaining parameters.
        num_parameters_before: Number of parameters before this removal.
        kept_neurons: For each feed-forward block whose neurons had gates, were pruned by hand or have lost any before,
            the original numbers of its remaining groups; others are in no groups.
        num_neurons: Number of remaining neurons.
        num_neurons_before: Number of neurons before this removal.
        unproven: Names of the blocks that have lost units without a proof: the compared outputs do not depend on them,
            or no outputs were compared.
    """

    kept_heads: dict[str, tuple[int, ...]]
    num_heads: int
    num_heads_before: int
    num_parameters: int
    num_parameters_before: int
    kept_neurons: dict[str, tuple[int, ...]] = field(default_factory=dict)
    num_neurons: int = 0
    num_neurons_before: int = 0
    unproven: tuple[str, ...] = ()

    @classmethod
    def of(cls, model: nn.Module, before: UnitCounts, blocks: Iterable[Block], **others: Any) -> Self:
        """Return the report on a model that has lost units.

        Args:
            model: The model.
            before: Its counts before the removal.
            blocks: The blocks that could lose units, as they were before; neurons are counted in their groups.
            others: Attributes of a subclass.
        """
        after = UnitCounts.of(model)
        group_sizes = {block.name: block.group_size for block in blocks if isinstance(block, FeedForwardBlock)}
        return cls(
            kept_heads={block.name: block.head_ids for block in iter_attention_blocks(model)},
            num_heads=after.num_heads,
            num_heads_before=before.num_heads,
            num_parameters=after.num_parameters,
            num_parameters_before=before.num_parameters,
            kept_neurons={
                block.name: block.regrouped(group_sizes.get(block.name, block.group_size)).group_ids
                for block in iter_feed_forward_blocks(model)
                if block.name in group_sizes or block.num_neurons < block.width_before
            },
            num_neurons=after.num_neurons,
            num_neurons_before=before.num_neurons,
            **others,
        )


def num_parameters(model: nn.Module) -> int:
    """Return the number of parameters of a model; shared parameters count once.

    Example:
        >>> num_parameters(nn.Linear(3, 2))
        8
    """
    return sum(parameter.numel() for parameter in model.parameters())


def unproven_note(unproven: Sequence[str]) -> str:
    """Return the sentence about blocks for which the proof of a removal says nothing; empty without any.

    Example:
        >>> unproven_note(["layers.0"])[-33:]
        'nothing is proven of it: layers.0'
    """
    if not unproven:
        return ""
    count = "a block that has" if len(unproven) == 1 else f"{len(unproven)} blocks that have"
    names = ", ".join([*unproven[:2], *(["..."] if len(unproven) > 2 else [])])
    them = "it" if len(unproven) == 1 else "them"
    return (
        f"The outputs compared before and after the removal do not depend on {count} lost units, so nothing is proven "
        f"of {them}: {names}"
    )
