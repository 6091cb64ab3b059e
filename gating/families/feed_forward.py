"""The registry of feed-forward layouts: rows of common names of projections, and classes that the user registers."""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from torch import Tensor, nn

from gating.errors import InputError
from gating.families.layouts import (
    FeedForwardSpec,
    UpLayout,
    check_row,
    num_inputs,
    num_outputs,
    read_spec,
    without_adapter,
)

__all__ = [
    "find_feed_forward_spec",
    "fits",
    "register_feed_forward_spec",
    "registered_feed_forward_spec",
    "rows_of_layout",
]

# Names of the projections, relative to the smallest module that holds all. Of two rows that fit, the first one counts.
_SHIPPED = (
    FeedForwardSpec((("intermediate.dense", "plain"),), "output.dense"),
    FeedForwardSpec((("gate_proj", "plain"), ("up_proj", "plain")), "down_proj"),
    FeedForwardSpec((("up_proj", "plain"),), "down_proj"),
    FeedForwardSpec((("gate_up_proj", "halves"),), "down_proj"),
    FeedForwardSpec((("fc1", "plain"),), "fc2"),
    FeedForwardSpec((("fc1", "halves"),), "fc2"),
    FeedForwardSpec((("c_fc", "plain"),), "c_proj"),
    FeedForwardSpec((("dense_h_to_4h", "plain"),), "dense_4h_to_h"),
    FeedForwardSpec((("wi_0", "plain"), ("wi_1", "plain")), "wo"),
    FeedForwardSpec((("wi", "plain"),), "wo"),
    FeedForwardSpec((("Wi", "halves"),), "Wo"),
    FeedForwardSpec((("lin1", "plain"),), "lin2"),
    FeedForwardSpec((("ffn", "plain"),), "ffn_output"),
    FeedForwardSpec((("intermediate_dense", "plain"),), "output_dense"),
    FeedForwardSpec((("fc_in", "plain"),), "fc_out"),
    FeedForwardSpec((("linear_fc1", "plain"),), "linear_fc2"),
    FeedForwardSpec((("linear1", "plain"),), "linear2"),
    FeedForwardSpec((("w1", "plain"), ("w3", "plain")), "w2"),
    FeedForwardSpec((("input_linear", "halves"),), "output_linear"),
    FeedForwardSpec((("ffw_layer_1", "plain"),), "ffw_layer_2"),
    FeedForwardSpec((("w_in.w_0", "plain"), ("w_in.w_1", "plain")), "w_out"),
)
_REGISTERED: dict[str, FeedForwardSpec] = {}


def register_feed_forward_spec(class_name: str, spec: FeedForwardSpec) -> None:
    """Register the layout of a feed-forward class; a later row for the same pattern replaces the earlier one.

    Args:
        class_name: Name of the class that holds all projections, or a regular expression that matches it in full.
        spec: The layout of its projections.

    Raises:
        ValueError: The name is no regular expression, or the spec has no pairs of paths and layouts.

    Example:
        >>> register_feed_forward_spec("MyMLP", FeedForwardSpec((("expand", "plain"),), "contract"))
    """
    check_row(class_name, getattr(spec, "ups", spec))
    _REGISTERED.pop(class_name, None)
    _REGISTERED[class_name] = spec
    _find_registered.cache_clear()


def find_feed_forward_spec(module: nn.Module) -> FeedForwardSpec | None:
    """Return the spec of a module that holds the projections of a feed-forward block, or None.

    An attribute ``feed_forward_spec`` of the module, where discovery stores its findings, takes precedence over rows
    that the user registered for its class, and those over common names of projections with fitting widths.
    """
    own: Any = getattr(module, "feed_forward_spec", None)
    if isinstance(own, dict):
        # A compact folder stores layouts as plain values.
        own = module.feed_forward_spec = read_spec(own, FeedForwardSpec)
    if isinstance(own, FeedForwardSpec):
        return own
    return registered_feed_forward_spec(module)


def registered_feed_forward_spec(module: nn.Module, *, shipped_only: bool = False) -> FeedForwardSpec | None:
    """Return the spec in a row that fits a module, or None; ``shipped_only`` leaves out those of the user."""
    registered = None if shipped_only else _find_registered(type(module))  # type: ignore[arg-type]
    if registered is None:
        return next((spec for spec in _SHIPPED if fits(module, spec)), None)
    if not fits(module, registered):
        raise InputError(
            f"The feed-forward spec of {type(module).__name__} does not fit: {registered.down!r} must be a linear "
            "layer with an input for each neuron, back to the input width of the up projections."
        )
    return registered


@lru_cache(maxsize=4096)
def _find_registered(owner_class: type) -> FeedForwardSpec | None:
    for ancestor in owner_class.__mro__:
        for pattern, spec in reversed(_REGISTERED.items()):
            if re.fullmatch(pattern, ancestor.__name__):
                return spec
    return None


def rows_of_layout(layout: UpLayout, positions: Sequence[int], width: int) -> list[int]:
    """Return the output rows of an up projection for the neurons at some of ``width`` positions."""
    if layout == "halves":
        return [*positions, *(width + position for position in positions)]
    if layout == "pairs":
        return [row for position in positions for row in (2 * position, 2 * position + 1)]
    return list(positions)


def fits(module: nn.Module, spec: FeedForwardSpec) -> bool:
    """Return whether the layers of a spec exist and have the widths of a feed-forward block."""
    down = _linear_at(module, spec.down)
    if down is None:
        return False
    width, hidden = num_inputs(down), num_outputs(down)
    for path, layout in spec.ups:
        up, num_rows = _linear_at(module, path), width if layout == "plain" else 2 * width
        if up is None or (num_outputs(up), num_inputs(up)) != (num_rows, hidden):
            return False
    return True


def _linear_at(module: nn.Module, path: str) -> nn.Module | None:
    first, *others = path.split(".")
    # Wrappers such as that of torch.compile pass attributes of their module on, and are no owner themselves.
    found: Any = module._modules.get(first)
    for name in others:
        found = getattr(found, name, None)
    if not isinstance(found, nn.Module):
        return None
    # Quantized layers, too: the error about them comes later.
    layer = without_adapter(found)
    weight = getattr(layer, "weight", None)
    is_matrix = weight.dim() == 2 if isinstance(weight, Tensor) else hasattr(layer, "in_features")
    return found if is_matrix else None
