"""Blocks from which units cannot be removed, with the reasons."""

from collections.abc import Callable, Iterable, Sequence
from types import MethodType
from typing import Any, TypeVar

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from gating.errors import InputError
from gating.families.linear import parameter_names, without_adapter
from gating.proof.conditions import is_shard
from gating.structure.blocks import Block
from gating.structure.feed_forward import ExpertsBlock

__all__ = ["sort_blocks", "why_not_editable"]

AnyBlock = TypeVar("AnyBlock", bound=Block)
# Implementations of experts in transformers that call the activation of the module.
_IMPLEMENTATIONS = ("eager", "batched_mm", "grouped_mm")


def sort_blocks(
    blocks: Iterable[AnyBlock], why_dependent: Callable[[AnyBlock], str | None]
) -> tuple[list[AnyBlock], list[tuple[AnyBlock, str]]]:
    """Return the blocks that can lose units, and the others with the reasons why their units depend on each other.

    Raises:
        ValueError: A projection of a block cannot be edited, even once its adapters are merged, or is one of another
            block, too, or experts compute their activation where gates do not reach it.
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


def _check_editable(block: Block) -> None:
    """Raise ``InputError`` for a block whose projections cannot lose rows or columns."""
    unit = block.unit
    if isinstance(block, ExpertsBlock):
        if reason := _why_not_gated(block):
            owner = f"{block.name} ({type(block.module).__name__})"
            raise InputError(f"{unit.capitalize()} cannot be removed from {owner}: {reason}.")
        names = [*(name for name, _ in block.spec.ups), block.spec.down]
        reasons = [_why_not_divisible(block.module._parameters[name]) for name in names]
    else:
        reasons = [why_not_editable(without_adapter(linear)) for linear in block.layers()]
    for reason in filter(None, reasons):
        reason = reason.replace("remove heads", f"remove {unit}")
        raise InputError(f"{unit.capitalize()} cannot be removed from {block.name}, because of a projection: {reason}.")


def _check_not_shared(blocks: Sequence[Block]) -> None:
    """Raise ``InputError`` for a layer that several blocks have, or one has twice: it could not lose units of both."""
    block_of: dict[nn.Module, Block] = {}
    for block in blocks:
        for layer in block.layers():
            other = block_of.get(layer)
            # A module that holds several projections as parameters is there for each of them.
            if other is not None and (other is not block or isinstance(layer, (nn.Linear, Conv1D))):
                owner = f"{block.name} ({type(block.module).__name__})"
                raise InputError(
                    f"{block.unit.capitalize()} cannot be removed from {owner}: it shares a projection with "
                    f"{'itself' if other is block else other.name}. Give each block layers of its own."
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
    return _why_not_divisible(weight) or (None if bias is None else _why_not_divisible(bias, name="bias"))


def _why_not_divisible(weight: Any, *, name: str = "weight") -> str | None:
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
