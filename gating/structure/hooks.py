"""Hooks on attention whose class does not call its output projection as a module."""

from collections.abc import Callable
from typing import Any

from gating.loader.modules import original_class, replaced_forward, subclass

__all__ = ["ForwardHandle"]


class ForwardHandle:
    """The handle of a function on the outputs of heads, with another ``forward`` while any such handle is in use.

    ``nn.MultiheadAttention`` does not call its output projection, so that hooks of the projection do not fire.
    """

    def __init__(self, module: Any, forward: Callable[..., Any], handle: Any) -> None:
        """Args: ``handle`` is that of the function, removed with this one."""
        self._module, self._handle = module, handle
        module.__dict__["num_feature_hooks"] = module.__dict__.get("num_feature_hooks", 0) + 1
        module.__class__ = subclass(type(module), replaced_forward, forward)

    def remove(self) -> None:
        """Remove the function; the last one restores the class unless heads have been removed."""
        self._handle.remove()
        self._module.num_feature_hooks -= 1
        if self._module.num_feature_hooks == 0:
            del self._module.num_feature_hooks
            if not hasattr(self._module, "head_slots"):
                self._module.__class__ = original_class(type(self._module))
