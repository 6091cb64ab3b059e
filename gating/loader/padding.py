"""Padding of groups of query heads: removed heads that stay in the projections, and whose outputs are zero."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from .classes import part

__all__ = ["HeadMask", "padded", "silenced"]


@dataclass(frozen=True)
class HeadMask:
    """A forward pre-hook of an output projection that sets the outputs of some heads to zero.

    Attributes:
        is_kept: For each head with columns in the projection, whether its outputs stay.
        head_dim: Width of one head.
    """

    is_kept: tuple[bool, ...]
    head_dim: int

    def __call__(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Mask the first input, ``[..., num_heads * head_dim]``."""
        head_outputs, *rest = inputs
        mask = head_outputs.new_tensor(self.is_kept).repeat_interleave(self.head_dim)
        return (head_outputs * mask, *rest)


@part
def silenced(base: type[nn.Module], is_kept: tuple[bool, ...], head_dim: int) -> dict[str, Any]:
    """Return the members of a subclass of an output projection that masks the outputs of padding heads.

    Their columns of the weight are zero and get a gradient of zero, so that training does not revive removed heads.
    """
    mask = HeadMask(is_kept, head_dim)

    def forward(self: Any, head_outputs: Tensor) -> object:
        return base.forward(self, mask(self, (head_outputs,))[0])

    return {"forward": forward}


@part
def padded(base: type[nn.Module], is_kept: tuple[bool, ...], head_dim: int, projection: str) -> dict[str, Any]:
    """Return the members of a subclass of attention that masks the input of adapters of its output projection, too."""
    mask = HeadMask(is_kept, head_dim)

    def set_attribute(self: Any, name: str, value: Any) -> None:
        wraps_projection = name == projection and isinstance(value, nn.Module) and hasattr(value, "base_layer")
        if wraps_projection and mask not in value._forward_pre_hooks.values():
            value.register_forward_pre_hook(mask)
        base.__setattr__(self, name, value)

    return {"__setattr__": set_attribute}
