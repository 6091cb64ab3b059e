"""Multiply-accumulates of gated units, counted in a forward pass."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from gating.gates import HeadGates
from gating.proof.outputs import forward_outputs
from gating.structure.blocks import Block
from gating.units import unit_of
from gating.units.unit import Calls

__all__ = ["measure_macs"]


def measure_macs(model: nn.Module, gates: HeadGates, blocks: Sequence[Block], batch: Mapping[str, Tensor]) -> Tensor:
    """Return the multiply-accumulates of each gate's units for one example, for :meth:`HeadGates.set_macs`.

    Tokens are counted in the calls of each block, so that patches of images, windows, the texts of encoder and decoder,
    and modules that serve several layers have their real numbers. Blocks that the batch does not reach keep the number
    they have.

    Args:
        model: The model; it computes one forward pass.
        gates: Its gates, which need not be attached.
        blocks: The blocks of the gates, in their order.
        batch: Keyword arguments of the model; examples of a typical length.

    Returns:
        Tensor of shape ``[num_gates]``, float64.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> from gating.units import find_blocks
        >>> from gating.gates import create_gates
        >>> model = BertModel(BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=4, vocab_size=10))
        >>> batch = {"input_ids": torch.ones(3, 5, dtype=torch.long)}
        >>> measure_macs(model, create_gates(model), find_blocks(model), batch).tolist()
        [420.0, 420.0, 420.0, 420.0]
    """
    calls = [Calls() for _ in blocks]
    handles = [
        handle
        for block, counts in zip(blocks, calls, strict=True)
        for handle in unit_of(block).hook_calls(block, counts)
    ]
    try:
        forward_outputs(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    batch_size = len(next(iter(batch.values())))
    macs = gates.macs_per_gate.split(gates.block_sizes)
    sizes = iter(gates.gate_sizes)
    found = []
    for counts, before in zip(calls, macs, strict=True):
        for known in before.tolist():
            size = next(sizes)
            is_reached = counts.num_tokens > 0
            found.append(size.macs(counts.num_tokens / batch_size, counts.num_keys) if is_reached else known)
    return torch.tensor(found, dtype=torch.float64)
