"""Copies of models for runtimes: in float32 with operations that they have, and with a head in every layer.

Where attention has no head, the copy has one that does nothing.
"""

from collections.abc import Collection, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from gating.families.layouts import num_inputs, num_outputs
from gating.loader.modeling import RECORD_KEY, base_prefix
from gating.loader.record import describe, renamed
from gating.proof.conditions import check_no_adapters, check_whole
from gating.pruning.layers import build_recorded
from gating.serving.contexts import CHANGING
from gating.structure.attention import AttentionBlock, iter_attention_blocks
from gating.structure.edits import apply_edits


def with_dummy_heads(model: PreTrainedModel, names: Collection[str] | None = None) -> PreTrainedModel:
    """Return a copy of a compact model in which each self-attention block has at least one key-value group.

    An emptied block gets the first head of the original model again, with its own key and value: its weights and
    biases are zero, and so are its columns of the output projection, whose bias stays. A layer that uses the keys of
    another one gets a head for each of them. Outputs are equal, and no head is counted as kept. The model stays as it
    is, and shares all other tensors with the copy. ``names`` are the emptied blocks to change; by default all.
    """
    check_whole(model, remedy="gather it first, or load the compact folder in one process")
    check_no_adapters(model)
    emptied = {
        block.name: block
        for block in iter_attention_blocks(model)
        if not block.head_slots and not block.is_cross_attention
    }
    dummy = list(emptied if names is None else names)
    if not dummy:
        return model
    copy = _build(model, [emptied[name] for name in dummy])
    _fill(copy, model)
    for block in iter_attention_blocks(copy):
        if block.name in dummy and isinstance(getattr(block.module, "head_index", None), Tensor):
            block.module.head_index = torch.tensor(block.head_slots, device=model.device)
    if getattr(model, "generation_config", None) is not None:
        copy.generation_config = deepcopy(model.generation_config)
    copy.eval()
    return copy


def _build(model: PreTrainedModel, emptied: Sequence[AttentionBlock]) -> PreTrainedModel:
    """Build the copy without values: blocks that get dummy heads are dense in its record, and lose all but these."""
    config, record, prefix = deepcopy(model.config), describe(model), base_prefix(model)
    modules = {module for block in emptied for module in (*block.module.modules(), *block.layers())}
    names = {name.removeprefix(prefix) for name, module in model.named_modules() if module not in modules}
    setattr(config, RECORD_KEY, renamed(record, {name: name for name in names}))
    copy = build_recorded(model, config)
    blocks = {block.name: block for block in iter_attention_blocks(copy)}
    apply_edits([edit for block in emptied for edit in blocks[block.name].plan_removal((), keeps_slot=True)])
    return copy


def _fill(copy: PreTrainedModel, model: PreTrainedModel) -> None:
    """Give a copy without values the tensors of a model where both have them in one shape, and zeros elsewhere."""
    tensors = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    places = [*copy.named_parameters(remove_duplicate=False), *copy.named_buffers(remove_duplicate=False)]
    for name, empty in places:
        owner, _, attribute = name.rpartition(".")
        tensor = tensors.get(name)
        if tensor is None or tensor.shape != empty.shape:
            zeros = torch.zeros_like(empty, device=model.device)
            tensor = nn.Parameter(zeros) if isinstance(empty, nn.Parameter) else zeros
        setattr(copy.get_submodule(owner), attribute, tensor)


def copy_in_float32(model: PreTrainedModel) -> PreTrainedModel:
    """Return a copy of a model's modules on the CPU without caching; it shares tensors that are in float32 there."""
    tensors = [*model.parameters(), *model.buffers()]
    shared = {id(one): one for one in tensors if one.device.type == "cpu" and one.dtype == torch.float32}
    copied: Any = deepcopy(model, shared).float().cpu()
    for module in copied.modules():  # A decoder beside an encoder has settings of its own.
        if hasattr(getattr(module, "config", None), "use_cache"):
            module.config.use_cache = False
    return copied  # type: ignore[no-any-return]


def as_converted(model: PreTrainedModel) -> PreTrainedModel:
    """Return a copy of a model in float32 whose operations runtimes have.

    Products with a layer without inputs, as in a block that has lost all neurons, are not zero in OpenVINO, nor in ONNX
    Runtime with 8-bit integers: only the bias stays of such a layer.
    """
    copied: Any = copy_in_float32(model)
    if getattr(copied.config, "_experts_implementation", None) is not None:
        copied.config._experts_implementation = "batched_mm"  # The others sort tokens by expert.
    _fix_rotations(copied)
    for name, module in list(copied.named_modules()):
        if isinstance(module, (nn.Linear, Conv1D)) and num_inputs(module) == 0:
            copied.set_submodule(name, BiasOnly(module))
    return copied  # type: ignore[no-any-return]


class BiasOnly(nn.Module):
    """The bias of a linear layer without any input."""

    weight: Tensor

    def __init__(self, linear: Any) -> None:
        """Args: ``linear`` has a weight without inputs, and a bias of shape ``[out_features]`` or None."""
        super().__init__()
        self.register_buffer("weight", linear.weight.detach().new_empty(num_outputs(linear), 0))
        self.bias: nn.Parameter | None = linear.bias

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return the bias at every position, ``[..., out_features]``, for an input of any width."""
        result = hidden_states.new_zeros(*hidden_states.shape[:-1], len(self.weight))
        return result if self.bias is None else result + self.bias


def _fix_rotations(model: PreTrainedModel) -> None:
    """Keep the frequencies of rotary embeddings at those of short texts, in place: a graph cannot choose by the length.

    Texts up to :func:`gating.serving.contexts.steady_context` have these.
    """
    module: Any
    for module in model.modules():
        kinds: Any = getattr(module, "rope_type", None)
        # A table has a rope type for each kind of layers.
        prefixes = {f"{kind}_": rope for kind, rope in kinds.items()} if isinstance(kinds, dict) else {"": kinds}
        for prefix, rope in prefixes.items():
            first: Any = getattr(module, f"{prefix}original_inv_freq", None)
            if rope in CHANGING and isinstance(first, torch.Tensor):
                # The model may have read a longer text before.
                module.register_buffer(f"{prefix}inv_freq", first.clone(), persistent=False)
                module.rope_type = {**kinds, prefix[:-1]: "default"} if isinstance(kinds, dict) else "default"
                kinds = module.rope_type
