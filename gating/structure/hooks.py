"""Hooks on the features of blocks: the inputs of layers, also where a class does not call its layer as a module."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from torch import Tensor, nn

from gating.loader.classes import subclass
from gating.loader.replaced import original_class, replaced_forward

__all__ = ["ForwardHandle", "Handle", "Handles", "hook_input"]


class Handle(Protocol):
    """A handle of a hook."""

    def remove(self) -> None:
        """Remove the hook."""


@dataclass(frozen=True)
class Handles:
    """Two handles that are removed together."""

    first: Handle
    second: Handle

    def remove(self) -> None:
        """Remove both hooks."""
        self.first.remove()
        self.second.remove()


def hook_input(layer: nn.Module, function: Callable[[Tensor], Tensor | None]) -> Handle:
    """Call a function on the first input of a layer before each use; a result other than None replaces the input.

    For models that are copied with their hooks, the function has to be a module.

    Example:
        >>> layer = nn.Identity()
        >>> handle = hook_input(layer, Tensor.neg)
        >>> layer(Tensor([1.0]))
        tensor([-1.])
        >>> handle.remove()
    """
    return layer.register_forward_pre_hook(partial(_replace_input, function))


def _replace_input(
    function: Callable[[Tensor], Tensor | None], _layer: nn.Module, inputs: tuple[Tensor, ...]
) -> tuple[Tensor, ...] | None:
    first, *others = inputs
    replacement = function(first)
    return None if replacement is None else (replacement, *others)


class ForwardHandle:
    """The handle of a function on the outputs of heads, with another ``forward`` while any such handle is in use.

    ``nn.MultiheadAttention`` does not call its output projection, so that hooks of the projection do not fire.
    """

    def __init__(self, module: Any, forward: Callable[..., Any], handle: Any) -> None:
        """Args: ``handle`` is that of the function, removed with this one."""
        self._module, self._handle = module, handle
        module.__dict__["num_feature_hooks"] = module.__dict__.get("num_feature_hooks", 0) + 1
        module.__class__ = subclass(type(module), (replaced_forward, forward))

    def remove(self) -> None:
        """Remove the function; the last one restores the class unless heads have been removed."""
        self._handle.remove()
        self._module.num_feature_hooks -= 1
        if self._module.num_feature_hooks == 0:
            del self._module.num_feature_hooks
            if not hasattr(self._module, "head_slots"):
                self._module.__class__ = original_class(type(self._module))
