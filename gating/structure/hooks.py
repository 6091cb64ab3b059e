"""Hooks on the features of blocks: the inputs of layers, also where a class does not call its layer as a module."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from types import MethodType
from typing import Any, Protocol

from torch import Tensor, nn

from gating.loader.modeling import subclass
from gating.loader.parts import original_class, replaced_forward


class Handle(Protocol):
    """A handle of a hook."""

    def remove(self) -> None:
        """Remove the hook."""


@dataclass(frozen=True)
class Hooks:
    """Hooks that are removed together, and a function that tidies up behind them."""

    hooks: Sequence[Handle]
    tidy: Callable[[], None] | None = None

    def remove(self) -> None:
        """Remove the hooks."""
        for hook in self.hooks:
            hook.remove()
        if self.tidy is not None:
            self.tidy()


def hook_input(layer: nn.Module, function: Callable[[Tensor], Tensor | None]) -> Handle:
    """Call a function on the first input of a layer before each use; a result other than None replaces the input.

    For models that are copied with their hooks, the function has to be a module.
    """
    return Hooks([layer.register_forward_pre_hook(partial(_replace_input, function))])


def _replace_input(
    function: Callable[[Tensor], Tensor | None], _layer: nn.Module, inputs: tuple[Tensor, ...]
) -> tuple[Tensor, ...] | None:
    first, *others = inputs
    replacement = function(first)
    return None if replacement is None else (replacement, *others)


def with_forward(handle: Handle, module: Any, forward: Callable[..., Any]) -> Handle:
    """Replace the ``forward`` of a module while such a handle of functions on the outputs of its heads is in use.

    ``nn.MultiheadAttention`` does not call its output projection, so that hooks of the projection do not fire.
    """
    module.__dict__["num_feature_hooks"] = module.__dict__.get("num_feature_hooks", 0) + 1
    forget_forward(module)
    module.__class__ = subclass(type(module), (replaced_forward, forward))
    return Hooks([handle], partial(_restore_forward, module))


def _restore_forward(module: Any) -> None:
    """Restore the class with the last handle, unless heads have been removed."""
    module.num_feature_hooks -= 1
    if module.num_feature_hooks == 0:
        del module.num_feature_hooks
        if not hasattr(module, "head_slots"):
            module.__class__ = original_class(type(module))


def forget_forward(module: nn.Module) -> None:
    """Forget the ``forward`` of its class that transformers 5.0 leaves on a module whose outputs it has recorded.

    It would precede that of a new class. One that a user has put there stays.
    """
    if vars(module).get("forward") == MethodType(type(module).forward, module):
        del module.forward
