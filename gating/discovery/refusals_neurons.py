"""Feed-forward blocks from which neurons cannot be removed, with the reasons."""

import re
from collections.abc import Iterator, Sequence
from itertools import combinations

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from gating.discovery.neuron_trial import why_features_change
from gating.discovery.refusals import check_not_shared, why_not_divisible, why_not_editable
from gating.errors import InputError, RemedyError
from gating.structure.blocks import iter_attention_blocks
from gating.structure.edits import num_inputs, num_outputs, without_adapter
from gating.structure.feed_forward import ExpertsBlock, FeedForwardBlock, iter_feed_forward_blocks

__all__ = ["explain_no_neurons", "sort_feed_forward", "why_mixed"]

_BETWEEN = re.compile(r"(?i)((ffn|mlp|inner|mid|intermediate|sub)\w*(norm|ln)|\w*conv\w*)")
# In BERT-like models, the smallest module with both projections is the whole layer.
_ATTENTION = re.compile(r"(?i)att(entio)?n")
# Implementations of experts in transformers that call the activation of the module.
_IMPLEMENTATIONS = ("eager", "batched_mm", "grouped_mm")


def sort_feed_forward(
    model: nn.Module, *, group_size: int | None = None
) -> tuple[list[FeedForwardBlock], list[tuple[FeedForwardBlock, str]]]:
    """Return the feed-forward blocks of a model that can lose neurons, and the others with the reasons.

    Args:
        model: The model.
        group_size: Number of neurons in a group; if left out, that of an earlier removal, or 64.

    Raises:
        ValueError: A projection of a block cannot be edited, even once its adapters are merged, or not in these groups,
            or experts compute their activation where gates do not reach it.
    """
    blocks: list[FeedForwardBlock] = []
    refused: list[tuple[FeedForwardBlock, str]] = []
    for block in iter_feed_forward_blocks(model, group_size=group_size):
        if isinstance(block, ExpertsBlock) and (reason := _why_not_gated(block)):
            raise _refusal(block, reason)
        reason = _why_neurons_depend(block)
        if reason is not None:
            refused.append((block, reason))
            continue
        for reason in _why_not_editable(block):
            reason = reason.replace("remove heads", "remove neurons")
            raise InputError(f"Neurons cannot be removed from {block.name}, because of a projection: {reason}.")
        blocks.append(block)
    check_not_shared(
        [(block, [*(up for up, _ in block.ups()), block.output_projection]) for block in blocks], unit="neurons"
    )
    return blocks, refused


def _why_not_editable(block: FeedForwardBlock) -> Iterator[str]:
    """Yield the reasons for which projections of a block cannot lose rows or columns."""
    if isinstance(block, ExpertsBlock):
        names = [*(name for name, _ in block.spec.ups), block.spec.down]
        reasons = [why_not_divisible(block.module._parameters[name]) for name in names]
    else:
        linears = [*(linear for linear, _ in block.ups()), block.output_projection]
        reasons = [why_not_editable(without_adapter(linear)) for linear in linears]
    yield from (reason for reason in reasons if reason is not None)


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


def _why_neurons_depend(block: FeedForwardBlock) -> str | None:
    """Return the reason for which neurons of a block depend on each other, such as a norm over all of them, or None."""
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
    return why_mixed(module, width, num_outputs(block.output_projection)) or why_features_change(block)


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


def _refusal(block: FeedForwardBlock, reason: str) -> InputError:
    return InputError(f"Neurons cannot be removed from {block.name} ({type(block.module).__name__}): {reason}.")


def explain_no_neurons(
    model: nn.Module, refused: Sequence[tuple[FeedForwardBlock, str]], *, searched: bool
) -> ValueError:
    """Return the error for a model without any usable feed-forward block.

    Args:
        model: The model.
        refused: Its blocks that cannot lose neurons, with the reasons.
        searched: Whether discovery has searched its structure, too.
    """
    if refused:
        return _refusal(*refused[0])
    if (cause := _why_no_neurons(model)) is not None:
        return InputError(f"Neurons cannot be removed from {type(model).__name__}: {cause}.")
    problem = (
        f"No feed-forward block of {type(model).__name__} is known: no module has two or three linear layers with "
        "common names, such as fc1 and fc2. Describe one with gating.register_feed_forward_spec('MyMLP', "
        "gating.FeedForwardSpec(ups=..., down=...))"
    )
    if searched:
        return InputError(f"{problem}; its flow of data shows none either.")
    end = "to discover its structure."
    return RemedyError(problem, python=f", or pass discover=True {end}", command=f", or give gates.discover=true {end}")


def _why_no_neurons(model: nn.Module) -> str | None:
    """Return the reason for which no feed-forward block of a model has independent neurons, or None.

    The reason is found in the structure of the model, not in a list of families.
    """
    attention = {module for block in iter_attention_blocks(model) for module in block.module.modules()}
    for name, module in model.named_modules():
        linears = [child for child in module.children() if isinstance(child, (nn.Linear, Conv1D))]
        for up, down in combinations(linears if module not in attention else [], 2):
            width, hidden = num_inputs(down), num_outputs(down)
            is_pair = num_inputs(up) == hidden and num_outputs(up) in (width, 2 * width)
            reason = why_mixed(module, width, hidden) if is_pair else None
            if reason is not None:
                return f"in {name or 'the model'} ({type(module).__name__}), {reason}"
    for name, module in model.named_modules():
        has_experts = "expert" in f"{name} {type(module).__name__}".lower()
        if has_experts and any(parameter.dim() == 3 for parameter in module.parameters(recurse=False)):
            return f"{name} ({type(module).__name__}) keeps the weights of all experts in one unknown parameter"
    return None
