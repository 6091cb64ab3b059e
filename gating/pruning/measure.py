"""Size and work of a model."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from transformers import PreTrainedModel

from gating.gates import HeadGates
from gating.proof.outputs import forward_outputs
from gating.structure.attention import iter_attention_blocks
from gating.structure.blocks import Block, group_labels


def count_heads_by_kind(model: nn.Module) -> dict[str, int]:
    """Return the number of heads of each tower of a model with several, else of each kind of attention."""
    counts = Counter[str]()
    blocks = list(iter_attention_blocks(model))
    for label, block in zip(group_labels(blocks), blocks, strict=True):
        counts[label] += block.num_heads
    return dict(counts)


def count_macs(model: nn.Module, batch: Mapping[str, Tensor]) -> int:
    """Return the multiply-accumulates of an average example of a batch, counted in a forward pass.

    Those of matrix products, convolutions and attention count; attention with all pairs of positions, also masked ones.
    """
    counter = _MacCounter()
    with counter:
        forward_outputs(model, batch)
    return round(counter.macs / len(next(iter(batch.values()))))


class _MacCounter(TorchDispatchMode):
    """Counter of multiply-accumulates, with the formulas of PyTorch and those that it lacks.

    PyTorch's ``FlopCounterMode`` counts no fused attention of the CPU and no experts, and fails for DeBERTa's autograd
    functions.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.macs: int = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        packet, kwargs = func._overloadpacket, kwargs or {}
        formula = _formula_of(packet)
        if formula is None:
            with self:  # Some devices have composed operations of their own, such as linear layers.
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        outputs = func(*args, **kwargs)
        if formula is not None:
            self.macs += formula(*args, **kwargs, out_val=outputs)
        return outputs


def _formula_of(packet: Any) -> Callable[..., int] | None:
    """Return the function from the arguments of an operation to its multiply-accumulates; None if it has none."""
    if "scaled_dot_product" in packet.__name__:
        return lambda query, key, value, *_, **__: (
            query.shape[:-1].numel() * key.shape[-2] * (query.shape[-1] + value.shape[-1])
        )
    if "grouped_mm" in packet.__name__:
        # Each row of inputs, ``[num_rows, in_features]``, is multiplied with the weight of one expert.
        return lambda inputs, weights, *_, **__: inputs.numel() * weights.shape[-1]
    flops = flop_registry.get(packet)
    return None if flops is None else lambda *args, **kwargs: flops(*args, **kwargs) // 2


def cache_bytes_per_token(model: nn.Module) -> int:
    """Return the bytes of keys and values that a generating model projects and caches for each token.

    Zero for models that do not generate. Keys and values of the source in cross-attention do not count. Layers with a
    sliding window cache the tokens of their window only.
    """
    if not (isinstance(model, PreTrainedModel) and model.can_generate()):
        return 0
    blocks = [block for block in iter_attention_blocks(model) if block.kind in ("self", "decoder")]
    return sum(block.cache_width for block in blocks) * model.dtype.itemsize


def weight_megabytes(model: nn.Module) -> float:
    """Return the size of a model's saved weights in MB (millions of bytes); shared tensors count once."""
    tensors = {
        id(tensor) if tensor.is_meta else tensor.data_ptr(): tensor
        for tensor in model.state_dict(keep_vars=True).values()
    }
    size: int = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    return size / 1e6


def measure_macs(model: nn.Module, gates: HeadGates, blocks: Sequence[Block], batch: Mapping[str, Tensor]) -> Tensor:
    """Return the multiply-accumulates of each gate's units for one example, for :meth:`HeadGates.set_macs`.

    Tokens are counted in the calls of each block in one forward pass, so that patches of images, windows, the texts of
    encoder and decoder, and modules that serve several layers have their real numbers. Blocks that the batch does not
    reach keep the number they have. The result is float64, ``[num_gates]``.
    """
    calls = [{"tokens": 0.0, "keys": 0.0} for _ in blocks]
    handles = [handle for block, counts in zip(blocks, calls, strict=True) for handle in block.hook_calls(counts)]
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
            is_reached = counts["tokens"] > 0
            found.append(size.macs(counts["tokens"] / batch_size, counts["keys"]) if is_reached else known)
    return torch.tensor(found, dtype=torch.float64)
