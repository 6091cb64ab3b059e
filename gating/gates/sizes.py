"""Sizes of gates: units, features, parameters and multiply-accumulates that each gate stands for."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import nn

from gating.errors import InputError
from gating.structure.blocks import AttentionBlock
from gating.structure.edits import num_inputs, num_outputs, parameter_names, without_adapter
from gating.structure.feed_forward import Block, FeedForwardBlock
from gating.structure.removal import row_runs, run_widths

__all__ = ["NUM_TOKENS", "GateSize", "gate_sizes"]

# Length of an example for which multiply-accumulates are counted unless a run measures them on its data.
NUM_TOKENS = 128


@dataclass(frozen=True)
class GateSize:
    """Size of the units that one gate multiplies.

    Attributes:
        num_heads: Number of present heads; padding does not count.
        num_neurons: Number of neurons.
        num_features: Number of inputs of the output projection.
        num_weights: Multiply-accumulates for each token: entries of weight matrices, of as many experts as a token has.
        num_parameters: Entries of weights and biases.
        state_size: Number of entries of the states of linear attention; zero for attention to keys and values.
        more_query_features: Number of features of the queries beyond ``num_features``; below zero for fewer.
    """

    num_heads: int
    num_neurons: int
    num_features: int
    num_weights: float
    num_parameters: float
    more_query_features: int = field(default=0, repr=False)
    state_size: int = field(default=0, repr=False)

    def macs(self, num_tokens: float = NUM_TOKENS, num_keys: float | None = None) -> float:
        """Return the multiply-accumulates of one example: projections, and the two products of attention.

        Args:
            num_tokens: Number of tokens, or of queries.
            num_keys: Number of keys that each query attends to; ``num_tokens`` if left out.

        Example:
            >>> GateSize(1, 0, 64, 4 * 64 * 768, 0).macs(128)
            27262976
        """
        if self.state_size:
            # Each token reads the state twice and changes it once.
            return (self.num_weights + 3 * self.state_size) * num_tokens
        features = 2 * self.num_features + self.more_query_features
        attention = features * num_tokens * (num_tokens if num_keys is None else num_keys)
        return self.num_weights * num_tokens + (attention if self.num_heads else 0)


def gate_sizes(block: Block, *, group_queries: bool = True) -> list[GateSize]:
    """Return the sizes of the gates of a block, in the order of its slots.

    Args:
        block: The block.
        group_queries: Whether the query heads that share keys and values get one gate.

    Raises:
        InputError: Query heads cannot be shared out evenly among the key-value heads.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> from gating import find_attention_blocks
        >>> model = BertModel(BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=4))
        >>> gate_sizes(find_attention_blocks(model)[0])[0]
        GateSize(num_heads=1, num_neurons=0, num_features=2, num_weights=64.0, num_parameters=70.0)
    """
    if isinstance(block, FeedForwardBlock):
        return [_size_of_group(block, width) for width in block.slot_widths]
    return [_size_of_heads(block, slots) for slots in _slots_by_gate(block, group_queries=group_queries)]


def _size_of_group(block: FeedForwardBlock, width: int) -> GateSize:
    macs, parameters = block.neuron_size()
    return GateSize(0, width, width, width * macs, width * parameters)


def _size_of_heads(block: AttentionBlock, slots: Sequence[int]) -> GateSize:
    # Query heads with a gate each share the rows of their keys and values.
    group = len(block.head_slots) // block.num_key_value_heads
    weights = biases = 0.0
    for linear, layout in block.projections():
        shares: dict[int, float] = {}
        for (kind, head), width in zip(row_runs(block, layout), run_widths(block, linear, layout), strict=True):
            if head == 0:
                shares[width] = shares.get(width, 0) + (1.0 if kind == "q" else 1 / group)
        rows = sum(width * share for width, share in shares.items())
        # A convolution multiplies as many positions as its kernel has.
        weights += rows * num_inputs(linear) * getattr(without_adapter(linear), "kernel_size", (1,))[0]
        biases += rows * _has_bias(linear)
    weights += block.head_dim * num_outputs(block.output_projection)
    num_heads = len(set(slots) & set(block.head_ids))
    num_slots = len(slots)
    return GateSize(
        num_heads,
        0,
        num_slots * block.head_dim,
        num_slots * weights,
        num_slots * (weights + biases),
        num_slots * (block.key_dim - block.head_dim),
        num_slots * block.head_dim * block.key_dim if block.spec.has_state else 0,
    )


def _has_bias(linear: nn.Module) -> bool:
    linear = without_adapter(linear)
    return getattr(linear, parameter_names(linear)[1], None) is not None


def _slots_by_gate(block: AttentionBlock, *, group_queries: bool) -> list[tuple[int, ...]]:
    """Return the head slots of a block, as original head numbers, that each of its gates multiplies."""
    slots, num_groups = block.head_slots, block.num_key_value_heads
    if len(slots) % num_groups:
        raise InputError(
            f"{block.name} has {len(slots)} query heads for {num_groups} key-value heads, which cannot be shared out "
            "evenly: correct num_attention_heads or num_key_value_heads in the model's configuration."
        )
    size = len(slots) // num_groups if group_queries and num_groups > 1 else 1
    return [slots[start : start + size] for start in range(0, len(slots), size)]
