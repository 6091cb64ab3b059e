"""GPT-2's ``Conv1D``, which cannot have a width of zero."""

from torch import nn
from transformers.pytorch_utils import Conv1D

from .changes import Side, num_inputs, num_outputs

__all__ = ["PARTS", "empty_linear"]


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


PARTS = {"empty_linear": empty_linear}
