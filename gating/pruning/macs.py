"""Multiply-accumulates of gated units, counted in a forward pass."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from gating.gates import HeadGates
from gating.proof.outputs import forward_outputs
from gating.structure.blocks import AttentionBlock
from gating.structure.edits import Handle
from gating.structure.feed_forward import Block, ExpertsBlock

__all__ = ["measure_macs"]


class _Calls:
    """Numbers of tokens in the calls of a block's projections during one forward pass."""

    def __init__(self, block: Block) -> None:
        # Experts compute each token as often as the router has chosen for it.
        self._per_token = block.experts_per_token if isinstance(block, ExpertsBlock) else 1
        self.num_tokens = 0.0
        self.num_keys = 0

    def count_tokens(self, features: Tensor) -> None:
        self.num_tokens += features.numel() // max(1, features.shape[-1]) / self._per_token

    def count_keys(self, layer: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
        if isinstance(layer, nn.MultiheadAttention):
            keys = named["key"] if "key" in named else inputs[1]
            self.num_keys = keys.shape[-2 if layer.batch_first or keys.dim() == 2 else 0]
        else:
            self.num_keys = (*inputs, *named.values())[0].shape[-2]


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
        >>> from gating.discovery.find import find_blocks
        >>> from gating.gates import create_gates
        >>> model = BertModel(BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=4, vocab_size=10))
        >>> batch = {"input_ids": torch.ones(3, 5, dtype=torch.long)}
        >>> measure_macs(model, create_gates(model), find_blocks(model), batch).tolist()
        [420.0, 420.0, 420.0, 420.0]
    """
    calls = [_Calls(block) for block in blocks]
    handles: list[Handle] = []
    for block, counts in zip(blocks, calls, strict=True):
        handles.append(block.hook_features(counts.count_tokens))
        if isinstance(block, AttentionBlock):
            # Where keys are those of an earlier layer, there are as many as queries.
            key = max(block.projections(), key=lambda projection: "k" in projection[1])[0]
            handles.append(key.register_forward_pre_hook(counts.count_keys, with_kwargs=True))
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
