"""Modules that half precision does not reach."""

from torch import nn

__all__ = ["FullPrecision"]


class FullPrecision(nn.Module):
    """A module that goes from device to device with its model, but stays in float32 when that goes to half precision.

    What decides over heads is made of many small steps, which half precision would round away.
    """

    def _apply(self, fn, recurse: bool = True):  # type: ignore[no-untyped-def]
        to_device = lambda tensor: tensor.to(fn(tensor.reshape(-1)[:0]).device)  # noqa: E731
        return super()._apply(to_device, recurse)  # type: ignore[no-untyped-call]
