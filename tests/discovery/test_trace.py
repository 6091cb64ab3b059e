"""Layouts of rows between two projections, traced by gradients."""

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from gating.discovery.trace import is_linear, trace_feed_forward


class Pairs(nn.Module):
    """A gated activation with the two rows of a neuron side by side."""

    def forward(self, inputs):
        gate, values = inputs.unflatten(-1, (-1, 2)).unbind(-1)
        return gate.sigmoid() * values


class Halves(Pairs):
    """A gated activation with the rows of the gate in front."""

    def forward(self, inputs):
        gate, values = inputs.chunk(2, dim=-1)
        return gate.relu() * values


class Block(nn.Module):
    """Projections with an operation between them."""

    def __init__(self, between, rows=12, width=12, hidden=8, up=nn.Linear):
        super().__init__()
        self.first, self.between, self.second = up(hidden, rows), between, nn.Linear(width, hidden)

    def forward(self, x):
        return self.second(self.between(self.first(x)))


class Function(nn.Module):
    """A function as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, inputs):
        return self.function(inputs)


def _trace(model):
    torch.manual_seed(0)
    candidates = {module: name for name, module in model.named_modules() if is_linear(module)}
    return trace_feed_forward(model.eval(), candidates, {"x": torch.randn(2, 5, 8)})


@pytest.mark.parametrize(
    ("block", "layout"),
    [
        (Block(nn.GELU()), "plain"),
        (Block(nn.ReLU(inplace=True)), "plain"),
        (Block(nn.PReLU()), "plain"),
        (Block(nn.GELU(), up=lambda hidden, rows: Conv1D(rows, hidden)), "plain"),
        (Block(nn.GELU(), rows=8, width=8), "plain"),
        (Block(Pairs(), rows=24), "pairs"),
        (Block(Halves(), rows=24), "halves"),
        (Block(Function(lambda x: x * (torch.arange(12) == 7))), "plain"),
    ],
)
def test_layouts_of_rows(block, layout):
    assert _trace(block) == {"second": (("first", layout),)}


class Residual(Block):
    """Adds another layer's output between the projections."""

    def __init__(self):
        super().__init__(nn.GELU())
        self.other = nn.Linear(4, 12)

    def forward(self, x):
        return self.second(self.between(self.first(x)) + self.other(x[..., :4]))


class Used(Block):
    """Returns its intermediate features, too."""

    def forward(self, x):
        features = self.first(x)
        return self.second(features.relu()), features[..., :1].sin()


@pytest.mark.parametrize(
    "block",
    [
        Block(nn.LayerNorm(12)),
        Block(nn.LayerNorm(12, elementwise_affine=False)),
        Block(nn.Sequential(nn.Flatten(0, 1), nn.PReLU(12))),
        Block(nn.Softmax(-1)),
        Block(Function(lambda x: x.flip(-1))),
        Block(Function(lambda x: x.cumsum(-2))),
        Block(Function(lambda x: x.roll(1, -2))),
        Block(Function(lambda x: x * 0)),
        Block(Function(torch.detach)),
        Block(Function(lambda x: x[..., :12]), rows=20),
        Block(Function(lambda x: x[..., :12]), rows=24),
        Residual(),
        Used(nn.GELU()),
    ],
)
def test_layers_that_are_no_feed_forward_block(block):
    assert not _trace(block)
