"""Models and modules from which heads cannot be removed, with the reasons."""

import re
from collections.abc import Iterable, Sequence
from types import MethodType
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from gating.errors import InputError
from gating.proof.conditions import is_shard
from gating.structure.blocks import AttentionBlock, iter_attention_blocks
from gating.structure.edits import parameter_names, without_adapter
from gating.structure.feed_forward import Block

__all__ = [
    "check_not_shared",
    "sort_blocks",
    "why_not_attention",
    "why_not_divisible",
    "why_not_editable",
]

_MIXERS = r"Mamba|LinearAttention|DeltaNet|DeltaAttention|Lightning|Rwkv|RWKV|Retention|SSM|Mixer2?$"
_OUTPUTS = ("o_proj", "out_proj", "dense", "projection_layer", "proj")
# Attributes that modules with a computation of their own have, with the reason for which their heads cannot go.
_COMPUTATIONS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("conv_kernel_layer", "query"), "conv_kernel_layer computes the kernels of a head from the queries of all heads"),
    (("dt_proj", "v_proj"), "dt_proj computes the mask of a head from the values of all heads"),
    (("lambda_q1", "lambda_k1"), "one half of its heads is subtracted from the other before the output projection"),
    (("experts", "kv_proj"), "its projections of queries and outputs are those of experts, others for each token"),
    (("num_hashes", "query_key"), "tokens are hashed by random rotations that are drawn for all heads together"),
    (("approx_mode", "query"), "its heads are computed by a CUDA kernel, without which the class returns zeros"),
    (("attention_biases", "projection"), "its projections end in batch norms, which no layout describes"),
    (("relative_pos_embeddings", "query_proj"), "the rows of relative_pos_embeddings alternate between its heads"),
)


def sort_blocks(model: nn.Module) -> tuple[list[AttentionBlock], dict[str, str]]:
    """Return the attention blocks of a model that can lose heads, and for the names of the others the reasons.

    Raises:
        ValueError: A projection of a block cannot be edited, even once its adapters are merged.
    """
    blocks, refused = [], {}
    for block in iter_attention_blocks(model):
        reason = _why_heads_depend(block.module, len(block.head_slots) * block.head_dim) if block.head_slots else None
        if reason is not None:
            refused[block.name] = reason
            continue
        if block.head_slots:
            _check_editable(block)
        blocks.append(block)
    check_not_shared([(block, _layers_of(block)) for block in blocks], unit="heads")
    return blocks, refused


def _layers_of(block: AttentionBlock) -> list[nn.Module]:
    """Return the layers that an attention block loses rows or columns of."""
    others = [linear for linear, _ in (*block.projections(), *block.other_outputs())]
    return [*others, block.output_projection]


def _check_editable(block: AttentionBlock) -> None:
    for linear in _layers_of(block):
        reason = why_not_editable(without_adapter(linear))
        if reason is not None:
            raise InputError(f"Heads cannot be removed from {block.name}, because of a projection: {reason}.")


def check_not_shared(layers_of: Iterable[tuple[Block, Sequence[nn.Module]]], *, unit: str) -> None:
    """Raise ``InputError`` for a layer that several blocks have, or one has twice: it could not lose units of both."""
    block_of: dict[nn.Module, Block] = {}
    for block, layers in layers_of:
        for layer in layers:
            other = block_of.get(layer)
            # A module that holds several projections as parameters is there for each of them.
            if other is not None and (other is not block or isinstance(layer, (nn.Linear, Conv1D))):
                raise InputError(
                    f"{unit.capitalize()} cannot be removed from {block.name} ({type(block.module).__name__}): it "
                    f"shares a projection with {'itself' if other is block else other.name}. Give each block layers of "
                    "its own."
                )
            block_of[layer] = block


def why_not_editable(linear: nn.Module) -> str | None:
    """Return the reason for which rows or columns of a layer cannot be removed, or None."""
    kind = type(linear).__name__
    weight = getattr(linear, parameter_names(linear)[0], None)
    if isinstance(weight, MethodType):
        return f"it is quantized ({type(linear).__module__}.{kind}): remove heads first and quantize the result"
    if isinstance(weight, Tensor) and (reason := _why_quantized(weight, f"{kind} with ")):
        return reason
    is_channelwise = isinstance(linear, nn.Conv1d) and linear.groups == linear.in_channels == linear.out_channels
    if not isinstance(linear, (nn.Linear, Conv1D, nn.MultiheadAttention)) and not is_channelwise:
        return f"{kind} is neither nn.Linear nor Conv1D: remove heads before layers are quantized or replaced"
    bias = getattr(linear, parameter_names(linear)[1], None)
    return why_not_divisible(weight) or (None if bias is None else why_not_divisible(bias, name="bias"))


def why_not_divisible(weight: Any, *, name: str = "weight") -> str | None:
    """Return the reason for which entries of a weight, or of another parameter, cannot be removed, or None."""
    if isinstance(weight, Tensor) and (reason := _why_quantized(weight, "")):
        return reason
    if type(weight) is not nn.Parameter and not is_shard(weight):
        return (
            f"its {name} is not a plain parameter but {type(weight).__name__} (quantized, distributed, parametrized): "
            "remove heads before that"
        )
    return None


def _why_quantized(weight: Tensor, kind: str) -> str | None:
    if weight.is_floating_point() and weight.element_size() > 1:
        return None
    return f"it is quantized ({kind}{weight.dtype} weights): remove heads first and quantize the result"


def why_not_attention(module: nn.Module) -> str | None:
    """Return the reason for which a module that mixes positions has no independent heads, or None.

    The reason is found in the structure of the module, not in a list of families.
    """
    if any(hasattr(module, name) for name in ("kv_a_proj_with_mqa", "kv_lora_rank", "kv_b_proj", "q_a_proj")):
        return (
            "the layout of this multi-head latent attention is unknown: describe its class with "
            "gating.register_attention_spec"
        )
    output = next((getattr(module, name) for name in _OUTPUTS if hasattr(module, name)), None)
    width = getattr(output, "in_features", None)
    has_projections = any(isinstance(child, nn.Linear) for child in module.children())
    # The names of models match, too.
    if re.search(_MIXERS, type(module).__name__) and has_projections and not isinstance(module, PreTrainedModel):
        return _why_not_mixer(module, width)
    reason = _why_heads_depend(module, width) if isinstance(width, int) else None
    return reason or _why_not_layers(module) or _why_own_computation(module) or _why_single(module)


def _why_own_computation(module: Any) -> str | None:
    """Return the reason for which a computation that only some classes have needs all heads, or None."""
    for names, reason in _COMPUTATIONS:
        if all(isinstance(getattr(module, name, None), (nn.Module, nn.Parameter, int, str)) for name in names):
            return reason
    if hasattr(module, "iterative_inv") and module.num_landmarks != module.seq_len:
        return "an inverse that it approximates is scaled by the largest sum of all heads"
    if hasattr(module, "sampling_offsets") and not hasattr(module, "value_proj"):
        return "its heads are parts of its input and output, without projections of values and outputs"
    if getattr(module, "slow_but_exact", False) and module.pretraining_tp > 1:
        return "slow_but_exact multiplies slices of the output projection's weight, where gates have no effect"
    return None


def _why_not_layers(module: nn.Module) -> str | None:
    """Return the reason for which projections are no layers of queries, keys, values and outputs, or None."""
    own = {name for name, parameter in module.named_parameters(recurse=False) if parameter.dim() == 3}
    if {"q", "k", "v", "o"} <= own:
        return "its projections are parameters of three dimensions, not layers whose inputs gates could scale"
    query = getattr(module, "q_proj", None)
    if isinstance(query, nn.Module) and any(parameter.dim() == 3 for parameter in query.parameters()):
        return "its projections have a weight for each codebook, not one for all tokens"
    if {name for name, child in module.named_children() if isinstance(child, nn.Linear)} == {"q_proj", "k_proj"}:
        return "it returns the probabilities of attention alone, without values"
    return None


def _why_single(module: nn.Module) -> str | None:
    """Return the reason for which attention by layers for queries, keys and values has a single head, or None."""
    children = {name.removesuffix("_proj") for name, _ in module.named_children()}
    # Numbers of heads may also be in a configuration.
    is_counted = any(re.search("head|group|config", name) for name in vars(module))
    if is_counted or not {"q", "k", "v"} <= children:
        return None
    return "it has a single head, as wide as the layer, of which no part can be removed alone"


def _why_not_mixer(module: nn.Module, width: object) -> str:
    """Return the reason for which linear attention or a state-space layer loses no heads."""
    if hasattr(module, "x_proj"):
        return "this state-space layer has no heads: the time steps of a channel are computed from all channels"
    weight = getattr(getattr(module, "norm", None), "weight", None)
    if isinstance(weight, Tensor) and weight.numel() == width:
        return (
            "norm normalizes the outputs of this linear attention or state-space layer across heads, so every head "
            "depends on those that would go"
        )
    return (
        "in this linear attention or state-space layer, heads have rows, channels of a convolution and states in an "
        "order of their own, which no layout describes"
    )


def _why_heads_depend(module: nn.Module, width: int) -> str | None:
    """Return the reason for which heads depend on each other, such as a norm over all of them, or None."""
    if getattr(module, "head_logits_proj", None) is not None:
        return "its heads are mixed before the softmax (talking heads)"
    for name, child in module.named_children():
        weight = getattr(child, "weight", None)
        if (
            re.fullmatch(r"(q|k|query|key)_?(layer)?_?(norm|layernorm|ln)|inner_attn_ln|attn_sub_norm", name)
            and weight is not None
        ):
            head_dim = getattr(module, "head_dim", width)
            if weight.dim() == 1 and weight.numel() == width > head_dim:
                return f"{name} normalizes across all heads, so every head depends on those that would go"
    return None
