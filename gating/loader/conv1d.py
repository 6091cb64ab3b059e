"""GPT-2's ``Conv1D``, which cannot have a width of zero."""

from collections.abc import Iterator

from torch import nn
from transformers.pytorch_utils import Conv1D

from .changes import Change, Side, num_inputs, num_outputs
from .layouts import FeedForwardSpec

__all__ = ["PARTS", "empty_linear", "without_neurons"]


def empty_linear(layer: Conv1D, *, side: Side) -> nn.Linear:
    """Return a linear layer without inputs or outputs: the forward pass of a Conv1D cannot infer such a shape."""
    num_in, num_out = (0, num_outputs(layer)) if side == "inputs" else (num_inputs(layer), 0)
    # Built with another shape, since initializing weights without elements gives a warning.
    linear = nn.Linear(1, 1, device="meta")
    linear.in_features, linear.out_features = num_in, num_out
    weight, bias = layer.weight, layer.bias
    linear.weight = nn.Parameter(weight.detach().new_empty(num_out, num_in), requires_grad=weight.requires_grad)
    linear.bias = bias if num_out else nn.Parameter(bias.detach()[:0].clone(), requires_grad=bias.requires_grad)
    return linear.train(layer.training)


def without_neurons(spec: FeedForwardSpec, module: nn.Module) -> Iterator[Change]:
    """Plan to put linear layers in the places of the layers of a block without neurons."""
    sides: list[tuple[str, Side]] = [*((path, "outputs") for path, _ in spec.ups), (spec.down, "inputs")]
    for path, side in sides:
        holder, _, attribute = path.rpartition(".")
        layer = module.get_submodule(path)
        assert isinstance(layer, Conv1D)
        yield module.get_submodule(holder), attribute, empty_linear(layer, side=side)


PARTS = {"without_neurons": without_neurons}
