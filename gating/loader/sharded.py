"""Models that FSDP2 cuts over several processes, with parameters that it cannot cut."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from .modeling import MIXINS

__all__ = ["Divisible", "indivisible_left_out", "is_indivisible"]


def is_indivisible(parameter: torch.Tensor) -> bool:
    """Return whether FSDP2 cannot cut a parameter: a scalar, or one of a block without neurons."""
    return parameter.dim() == 0 or parameter.numel() == 0


@contextmanager
def indivisible_left_out(model: nn.Module) -> Iterator[None]:
    """Take scalars and parameters without entries out of a model in a ``with`` block: FSDP2 cannot cut them."""
    found = [
        (module, name, parameter)
        for module in model.modules()
        for name, parameter in module._parameters.items()
        if parameter is not None and is_indivisible(parameter)
    ]
    for module, name, _ in found:
        module._parameters[name] = None
    try:
        yield
    finally:
        for module, name, parameter in found:
            module._parameters[name] = parameter


class Divisible:
    """Methods of a compact model with parameters that FSDP2 cannot cut."""

    @classmethod
    def maybe_distribute_model(cls, model: Any, *args: Any, **kwargs: Any) -> Any:
        """Cut a model over several processes as transformers does, without the parameters that cannot be cut."""
        with indivisible_left_out(model):
            return super().maybe_distribute_model(model, *args, **kwargs)  # type: ignore[misc]


MIXINS.append(Divisible)
