"""Modules that half precision does not reach."""

from torch import nn

__all__ = ["FullPrecision"]


class FullPrecision(nn.Module):
    """A module that moves to other devices, but not to other dtypes, with its model.

    Gates and multipliers change in many small steps, which half precision would round to zero.

    Example:
        >>> import torch
        >>> class Offset(FullPrecision):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.value = nn.Parameter(torch.zeros(1))
        >>> Offset().to(torch.bfloat16).value.dtype
        torch.float32
    """

    def _apply(self, fn, recurse: bool = True):  # type: ignore[no-untyped-def]
        to_device = lambda tensor: tensor.to(fn(tensor.reshape(-1)[:0]).device)  # noqa: E731
        return super()._apply(to_device, recurse)  # type: ignore[no-untyped-call]
