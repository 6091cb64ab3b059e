"""Costs of the units of a gate, and norms of their weights.

Blocks are those of ``gating.structure.attention`` and ``gating.structure.feed_forward``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from gating.families.layouts import num_inputs, num_outputs, parameter_names, without_adapter
from gating.structure.attention_removal import row_runs, rows_of, run_widths
from gating.structure.edits import positions, whole

# Length of an example for which multiply-accumulates are counted unless a run measures them on its data.
NUM_TOKENS = 128


@dataclass(frozen=True)
class GateSize:
    """Size of the units that one gate multiplies.

    Attributes:
        num_units: Number of present heads, or of neurons; padding does not count.
        num_features: Number of inputs of the output projection.
        num_weights: Multiply-accumulates for each token: entries of weight matrices, of as many experts as a token has.
        num_parameters: Entries of weights and biases.
        num_pair_features: Multiply-accumulates for each pair of a query and a key.
        state_size: Number of entries of the states of linear attention; zero for attention to keys and values.
        num_cached: Number of keys and values for each token that a decoder no longer caches without these units.
    """

    num_units: int
    num_features: int
    num_weights: float
    num_parameters: float
    num_pair_features: int = field(default=0, repr=False)
    state_size: int = field(default=0, repr=False)
    num_cached: int = field(default=0, repr=False)

    def macs(self, num_tokens: float = NUM_TOKENS, num_keys: float | None = None) -> float:
        """Return the multiply-accumulates of one example: projections, and the two products of attention.

        Each token is a query; it attends to ``num_keys`` keys, or to as many as there are tokens.
        """
        if self.state_size:
            # Each token reads the state twice and changes it once.
            return (self.num_weights + 3 * self.state_size) * num_tokens
        pairs = self.num_pair_features * num_tokens * (num_tokens if num_keys is None else num_keys)
        return self.num_weights * num_tokens + pairs


def head_sizes(block: Any, slots: Sequence[int]) -> GateSize:
    """Return the size of the heads in some slots of an attention block, given by their original numbers."""
    # Query heads with a gate each share the rows of their keys and values.
    group = block.queries_per_key
    weights = biases = 0.0
    for linear, layout in block.projections():
        shares: dict[int, float] = {}
        for (kind, head), width in zip(row_runs(block, layout), run_widths(block, linear, layout), strict=True):
            if head == 0:
                shares[width] = shares.get(width, 0) + (1.0 if kind == "q" else 1 / group)
        rows = sum(width * share for width, share in shares.items())
        # A convolution multiplies as many positions as its kernel has.
        layer = without_adapter(linear)
        weights += rows * num_inputs(layer) * getattr(layer, "kernel_size", (1,))[0]
        biases += rows * (getattr(layer, parameter_names(layer)[1], None) is not None)
    weights += block.head_dim * num_outputs(block.output_projection)
    num_heads, num_slots = len(set(slots) & set(block.head_ids)), len(slots)
    return GateSize(
        num_heads,
        num_slots * block.head_dim,
        num_slots * weights,
        num_slots * (weights + biases),
        # Padding alone is never kept for its own sake.
        num_slots * (block.key_dim + block.head_dim) if num_heads else 0,
        num_slots * block.head_dim * block.key_dim if block.spec.has_state else 0,
        # One head of a group leaves the keys and values that the others share.
        block.head_cache_width if num_slots == group and not block.spec.lends else 0,
    )


def head_norms(block: Any) -> Tensor:
    """Return the L1 norm of the weights of each head slot of a block, without biases: ``[num_slots]``, float32.

    These are the head's rows of the query, key and value projections and its columns of the output projection. Shared
    keys and values count in equal parts for the query heads that share them.
    """
    slots, groups = range(len(block.head_slots)), range(block.num_key_value_heads)
    size = block.queries_per_key
    columns = weight_matrix(block.output_projection).T
    norms = torch.stack([_norm(columns, positions([slot], block.head_dim)) for slot in slots])
    for linear, layout in block.projections():
        weight = weight_matrix(linear)
        own = [_norm(weight, rows_of(block, linear, layout, [slot], ())) for slot in slots]
        shared = [_norm(weight, rows_of(block, linear, layout, (), [group])) for group in groups]
        norms = norms + torch.stack(own) + torch.stack(shared).repeat_interleave(size) / size
    return norms


def neuron_norms(block: Any) -> Tensor:
    """Return the L1 norm of the weights of each present neuron, without biases: ``[num_neurons]``, float32.

    These are the neuron's rows of the up projections and its column of the down projection; of all experts, if any.
    """
    down, *ups = block.weights()
    norms = _sums(*down[:2])
    for weight, dim, layout in ups:
        rows = _sums(weight, dim)
        by_neuron = rows.view(2, -1).sum(dim=0) if layout == "halves" else rows
        by_neuron = rows.view(-1, 2).sum(dim=1) if layout == "pairs" else by_neuron
        norms = norms + by_neuron.to(norms.device)
    return norms


def _sums(weight: Tensor, dim: int) -> Tensor:
    """Return the L1 norm of each entry of one dimension."""
    others = [other for other in range(weight.dim()) if other != dim]
    return whole(weight).abs().sum(dim=others, dtype=torch.float32)


def _norm(weight: Tensor, rows: Tensor) -> Tensor:
    return weight.index_select(0, rows.to(weight.device)).abs().sum(dtype=torch.float32)


def weight_matrix(linear: nn.Module) -> Tensor:
    """Return the weight of a layer as ``[outputs, inputs]``, without that of an adapter."""
    linear = without_adapter(linear)
    weight = getattr(linear, parameter_names(linear)[0])
    assert isinstance(weight, Tensor)
    weight = whole(weight)
    return weight.T if isinstance(linear, Conv1D) else weight


def token_counter(calls: dict[str, float], *, per_token: int = 1) -> Callable[[Tensor], None]:
    """Return a function that counts tokens by their features, ``[..., num_features]``, each ``per_token`` times."""

    def count(features: Tensor) -> None:
        calls["tokens"] += features.numel() // max(1, features.shape[-1]) / per_token

    return count
