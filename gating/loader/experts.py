"""Experts of one layer: feed-forward networks whose weights are parameters of three dimensions.

A router chooses some experts for each token. All experts of a layer have the same neurons, which they lose together:
experts of different widths would not fit into one parameter.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from .changes import Change, shorten
from .layouts import FeedForwardSpec, UpLayout
from .views import ConfigView

__all__ = ["PARTS", "ExpertsSpec", "without_grouped_products"]


@dataclass(frozen=True)
class ExpertsSpec(FeedForwardSpec):
    """The layout of the parameters of experts; the paths are names of parameters ``[num_experts, outputs, inputs]``.

    Attributes:
        is_transposed: Whether the parameters are ``[num_experts, inputs, outputs]``.
    """

    is_transposed: bool = False

    @property
    def input_dim(self) -> int:
        """The dimension of a parameter that belongs to the inputs of its experts."""
        return 1 if self.is_transposed else 2

    @property
    def output_dim(self) -> int:
        """The dimension of a parameter that belongs to the outputs of its experts."""
        return 3 - self.input_dim

    def num_neurons(self, module: nn.Module) -> int:
        """Return the number of neurons of each expert in a module."""
        return int(getattr(module, self.down).shape[self.input_dim])

    def owner_of(self, name: str) -> str:
        """Return the name of the module of the experts, which is that of the block."""
        return name

    def dims(self, module: nn.Module) -> Iterator[tuple[str, UpLayout, int]]:
        """Yield the parameters with rows of neurons: their names, layouts and dimensions of the neurons.

        These are the weights of the up projections, and their biases ``[num_experts, outputs]`` where there are any.
        """
        yield from ((name, layout, self.output_dim) for name, layout in self.ups)
        for name, layout in self.ups:
            if module._parameters.get(f"{name}_bias") is not None:
                yield f"{name}_bias", layout, 1

    def plan(self, module: nn.Module, size: int) -> Iterator[Change]:
        """Plan to give the parameters of a module the shapes for some number of neurons."""
        for name, layout, dim in self.dims(module):
            yield shorten(module, name, size if layout == "plain" else 2 * size, dim)
        yield shorten(module, self.down, size, self.input_dim)
        yield from without_grouped_products(module, size)


def without_grouped_products(module: nn.Module, size: int) -> Iterator[Change]:
    """Plan to compute experts without neurons by other products of matrices.

    Without any neuron the experts give their biases, weighted by the router, and all parameters keep a gradient. The
    grouped products refuse a width of zero; the batched ones, which replace them there, gather weights of size zero.
    """
    config = getattr(module, "config", None)
    if not size and hasattr(config, "_experts_implementation"):
        yield module, "config", ConfigView(config, {"_experts_implementation": "batched_mm"})


PARTS = {"experts": ExpertsSpec}
