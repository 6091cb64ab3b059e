"""Blocks from which units cannot be removed, and the reasons, found in the structure of their modules."""

import re
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from gating.errors import InputError
from gating.families.layouts import num_outputs, parameter_names, without_adapter
from gating.proof.conditions import is_shard
from gating.structure.attention import AttentionBlock
from gating.structure.blocks import Block
from gating.structure.feed_forward import ExpertsBlock, FeedForwardBlock

AnyBlock = TypeVar("AnyBlock", bound=Block)
# Implementations of experts in transformers that call the activation of the module.
_IMPLEMENTATIONS = ("eager", "batched_mm", "grouped_mm")
_MIXERS = r"Mamba|LinearAttention|DeltaNet|DeltaAttention|Lightning|Rwkv|RWKV|Retention|SSM|Mixer2?$"
_LATENT = ("kv_a_proj_with_mqa", "kv_lora_rank", "kv_b_proj", "q_a_proj")
_OUTPUTS = ("o_proj", "out_proj", "dense", "projection_layer", "proj")
_NORMS_OF_HEADS = re.compile(r"(q|k|query|key)_?(layer)?_?(norm|layernorm|ln)|inner_attn_ln|attn_sub_norm")
_BETWEEN = re.compile(r"(?i)((ffn|mlp|inner|mid|intermediate|sub)\w*(norm|ln)|\w*conv\w*)")
_NOT_PLAIN = "is quantized, distributed, parametrized or of another class: do that after the removal"
# In BERT-like models, the smallest module with both projections is the whole layer.
_ATTENTION = re.compile(r"(?i)att(entio)?n")


def sort_blocks(blocks: Iterable[AnyBlock]) -> tuple[list[AnyBlock], list[tuple[AnyBlock, str]]]:
    """Return the blocks that can lose units, and the others with the reasons why their units depend on each other.

    A block whose weights cannot be edited, or are those of another one, too, is a ``ValueError``.
    """
    usable: list[AnyBlock] = []
    refused: list[tuple[AnyBlock, str]] = []
    for block in blocks:
        reason = why_dependent(block) if block.slot_ids else None
        if reason is not None:
            refused.append((block, reason))
            continue
        if block.slot_ids:
            _check_editable(block)
        usable.append(block)
    _check_not_shared(usable)
    return usable, refused


def _refuse(block: Block, reason: str) -> InputError:
    owner = f"{block.name} ({type(block.module).__name__})"
    return InputError(f"{block.unit.capitalize()} cannot be removed from {owner}: {reason}.")


def _check_editable(block: Block) -> None:
    """Raise ``InputError`` for a block whose projections cannot lose rows or columns."""
    if isinstance(block, ExpertsBlock):
        names = [*(name for name, _ in block.spec.ups), block.spec.down]
        is_plain = all(_is_plain(block.module._parameters[name]) for name in names)
        reasons = [_why_not_gated(block), None if is_plain else f"a weight of the experts {_NOT_PLAIN}"]
    else:
        reasons = [why_not_editable(without_adapter(linear)) for linear in block.layers()]
    for reason in filter(None, reasons):
        raise _refuse(block, reason)


def _check_not_shared(blocks: Sequence[Block]) -> None:
    """Raise ``InputError`` for a layer that several blocks have, or one has twice: it could not lose units of both."""
    block_of: dict[nn.Module, Block] = {}
    for block in blocks:
        for layer in block.layers():
            other = block_of.get(layer)
            # A module that holds several projections as parameters is there for each of them.
            if other is not None and (other is not block or isinstance(layer, (nn.Linear, Conv1D))):
                sharer = "itself" if other is block else other.name
                raise _refuse(block, f"it shares a projection with {sharer}, so give each block layers of its own")
            block_of[layer] = block


def why_not_editable(linear: nn.Module) -> str | None:
    """Return the reason for which rows or columns of a layer cannot be removed, or None."""
    weight, bias = (getattr(linear, name, None) for name in parameter_names(linear))
    is_channelwise = isinstance(linear, nn.Conv1d) and linear.groups == linear.in_channels == linear.out_channels
    is_known = isinstance(linear, (nn.Linear, Conv1D, nn.MultiheadAttention)) or is_channelwise
    if is_known and _is_plain(weight) and (bias is None or _is_plain(bias)):
        return None
    return f"a projection ({type(linear).__module__}.{type(linear).__name__}) {_NOT_PLAIN}"


def _is_plain(weight: Any) -> bool:
    """Return whether entries of a parameter can be removed: it is no other class of tensors, and not packed."""
    is_parameter = type(weight) is nn.Parameter or is_shard(weight)
    return is_parameter and weight.is_floating_point() and weight.element_size() > 1


def _why_not_gated(experts: ExpertsBlock) -> str | None:
    """Return the reason for which nothing can multiply the features of experts, or None."""
    if getattr(experts.module, "_is_expert_parallel", False):
        return "its experts are distributed over devices: load the model without expert parallelism"
    implementation = getattr(getattr(experts.module, "config", None), "_experts_implementation", None)
    if implementation not in (None, *_IMPLEMENTATIONS):
        return (
            f"the implementation {implementation!r} computes the activation in a kernel of its own: call "
            "model.set_experts_implementation('grouped_mm') before"
        )
    return None


def why_dependent(block: Block) -> str | None:
    """Return the reason for which units of a block depend on each other, such as a norm over all of them, or None."""
    if isinstance(block, AttentionBlock):
        return _why_heads_mixed(block.module, len(block.head_slots) * block.head_dim)
    if not isinstance(block, FeedForwardBlock) or isinstance(block, ExpertsBlock):
        return None
    module = block.module
    if getattr(module, "slow_but_exact", False) and getattr(module, "pretraining_tp", 1) > 1:
        return (
            "with slow_but_exact it multiplies slices of the down projection's weight and never calls that layer: load "
            "the model with pretraining_tp=1"
        )
    if getattr(module, "activation_sparsity", 0.0) > 0:
        return "activation_sparsity_pattern takes a cutoff from the mean and the deviation of all neurons of this layer"
    return why_mixed(module, block.num_neurons, num_outputs(block.output_projection))


def _why_heads_mixed(module: nn.Module, width: int) -> str | None:
    if getattr(module, "head_logits_proj", None) is not None:
        return "its heads are mixed before the softmax (talking heads)"
    for name, child in module.named_children():
        weight = getattr(child, "weight", None)
        is_vector = isinstance(weight, Tensor) and weight.dim() == 1 and weight.numel() == width
        if is_vector and _NORMS_OF_HEADS.fullmatch(name) and width > getattr(module, "head_dim", width):
            return f"{name} normalizes across all heads, so every head depends on those that would go"
    return None


def why_mixed(module: nn.Module, width: int, hidden: int) -> str | None:
    """Return the reason for which a module between projections mixes all neurons, or None."""
    for name, child in module.named_modules():
        weight = getattr(child, "weight", None)
        if not isinstance(weight, Tensor) or _ATTENTION.search(name):
            continue
        # A norm of the hidden state has another width, or another name.
        if width == hidden and not _BETWEEN.fullmatch(name.rpartition(".")[2]):
            continue
        is_norm, is_convolution = weight.shape == (width,), weight.dim() > 2 and weight.shape[0] == width
        if is_norm or is_convolution:
            return f"{name} ({type(child).__name__}) between its projections mixes all neurons"
    return None


def why_not_attention(module: nn.Module) -> str | None:
    """Return the reason for which a module that mixes positions has no heads that discovery could find, or None."""
    if any(hasattr(module, name) for name in _LATENT):
        return (
            "the layout of this multi-head latent attention is unknown: describe its class with "
            "gating.register_attention_spec"
        )
    has_projections = any(isinstance(child, nn.Linear) for child in module.children())
    # The names of models match, too.
    if re.search(_MIXERS, type(module).__name__) and has_projections and not isinstance(module, PreTrainedModel):
        return "the states of this linear attention or state-space layer have no heads in an order that is known"
    output = next((getattr(module, name) for name in _OUTPUTS if hasattr(module, name)), None)
    width = getattr(output, "in_features", None)
    return _why_heads_mixed(module, width) if isinstance(width, int) else None
