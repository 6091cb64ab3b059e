"""Feed-forward blocks from which neurons cannot be removed, with the reasons."""

import re

from torch import Tensor, nn

from gating.discovery.refusals import why_not_editable
from gating.errors import InputError, RemedyError
from gating.structure.edits import without_adapter
from gating.structure.feed_forward import FeedForwardBlock, iter_feed_forward_blocks

__all__ = ["explain_no_neurons", "removable_feed_forward_blocks"]

_BETWEEN = re.compile(r"(?i)((ffn|mlp|inner|mid|intermediate|sub)\w*(norm|ln)|\w*conv\w*)")


def removable_feed_forward_blocks(model: nn.Module, *, group_size: int | None = None) -> list[FeedForwardBlock]:
    """Return the feed-forward blocks of a model.

    Args:
        model: The model.
        group_size: Number of neurons in a group; if left out, that of an earlier removal, or 64.

    Raises:
        ValueError: Neurons cannot be removed from one of them, once its adapters are merged, or not in these groups.
    """
    blocks = list(iter_feed_forward_blocks(model, group_size=group_size))
    for block in blocks:
        reason = _why_neurons_depend(block)
        if reason is not None:
            raise InputError(f"Neurons cannot be removed from {block.name} ({type(block.module).__name__}): {reason}.")
        for linear in (*(linear for linear, _ in block.ups()), block.output_projection):
            reason = why_not_editable(without_adapter(linear))
            if reason is not None:
                reason = reason.replace("remove heads", "remove neurons")
                raise InputError(f"Neurons cannot be removed from {block.name}, because of a projection: {reason}.")
    return blocks


def _why_neurons_depend(block: FeedForwardBlock) -> str | None:
    """Return the reason for which neurons of a block depend on each other, such as a norm over all of them, or None."""
    module, width = block.module, block.num_neurons
    if getattr(module, "slow_but_exact", False) and getattr(module, "pretraining_tp", 1) > 1:
        return (
            "with slow_but_exact it multiplies slices of the down projection's weight and never calls that layer: load "
            "the model with pretraining_tp=1"
        )
    for name, child in module.named_children():
        weight = getattr(child, "weight", None)
        if _BETWEEN.fullmatch(name) and isinstance(weight, Tensor) and width in weight.shape:
            return f"{name} ({type(child).__name__}) between its projections mixes all neurons"
    return None


def explain_no_neurons(model: nn.Module) -> ValueError:
    """Return the error for a model without any known feed-forward block."""
    problem = (
        f"No feed-forward block of {type(model).__name__} is known: no module has two or three linear layers with "
        "common names, such as fc1 and fc2. Describe one with gating.register_feed_forward_spec('MyMLP', "
        "gating.FeedForwardSpec(ups=..., down=...))"
    )
    end = "to discover its structure."
    return RemedyError(problem, python=f", or pass discover=True {end}", command=f", or give gates.discover=true {end}")
