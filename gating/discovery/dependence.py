"""Reasons for which the units of a block depend on each other, found in the structure of its module."""

import re
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from gating.families.linear import num_outputs
from gating.structure.attention import AttentionBlock
from gating.structure.feed_forward import ExpertsBlock, FeedForwardBlock

__all__ = ["why_heads_depend", "why_mixed", "why_neurons_depend", "why_not_attention"]

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
_BETWEEN = re.compile(r"(?i)((ffn|mlp|inner|mid|intermediate|sub)\w*(norm|ln)|\w*conv\w*)")
# In BERT-like models, the smallest module with both projections is the whole layer.
_ATTENTION = re.compile(r"(?i)att(entio)?n")


def why_heads_depend(block: AttentionBlock) -> str | None:
    """Return the reason for which heads of a block depend on each other, such as a norm over all of them, or None."""
    return _why_heads_mixed(block.module, len(block.head_slots) * block.head_dim)


def _why_heads_mixed(module: nn.Module, width: int) -> str | None:
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


def why_neurons_depend(block: FeedForwardBlock) -> str | None:
    """Return the reason for which neurons of a block depend on each other, or None; those of experts never do."""
    if isinstance(block, ExpertsBlock):
        return None
    module, width = block.module, block.num_neurons
    if getattr(module, "slow_but_exact", False) and getattr(module, "pretraining_tp", 1) > 1:
        return (
            "with slow_but_exact it multiplies slices of the down projection's weight and never calls that layer: load "
            "the model with pretraining_tp=1"
        )
    if getattr(module, "activation_sparsity", 0.0) > 0:
        return "activation_sparsity_pattern takes a cutoff from the mean and the deviation of all neurons of this layer"
    if mixed := why_mixed(module, width, num_outputs(block.output_projection)):
        return mixed
    from gating.discovery.neuron_trial import why_features_change

    return why_features_change(block)


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
    reason = _why_heads_mixed(module, width) if isinstance(width, int) else None
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
