"""Trial of a feed-forward block without its weights: whether its features are the same with fewer neurons.

Names of layers do not show what a class computes between them, such as a cutoff from the mean of all neurons. Its
forward pass therefore runs on a few vectors in a copy without values, in which the up projections return given
features and the down projection keeps its input. The model is not touched, so that it may have any size, be sharded,
quantized or on the meta device.
"""

from collections.abc import Iterator, Mapping
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from gating.families.feed_forward import rows_of_layout
from gating.families.linear import num_inputs
from gating.proof.inputs.sizes import required_arguments
from gating.structure.feed_forward import FeedForwardBlock

__all__ = ["why_features_change"]

_NUM_DRAWS = 4
# Attributes that differ from layer to layer, and not in what a forward pass computes of its features.
_NUMBERS = {"layer_idx", "layer_id", "training", "num_feature_hooks"}
_SETTINGS = (bool, int, float, str, FunctionType, type(None))
# More other parameters than those of small layers make a pass slow.
_MOST_OTHERS = 2**26
_FOUND: dict[tuple[object, ...], str | None] = {}


def why_features_change(block: FeedForwardBlock) -> str | None:
    """Return the reason for which the features of a block's kept neurons would change without the others, or None.

    None also stands for a class whose forward pass needs more than hidden states. Blocks of one class with the same
    settings are tried once.
    """
    if block.num_neurons < 2:
        return None
    parts = [part for name, module in block.module.named_modules() for part in (name, type(module), *_settings(module))]
    key = (block.spec, block.num_neurons, block.hidden_size, *parts)
    if key not in _FOUND:
        with torch.device("cpu"):  # also where a user has set another device for new tensors
            _FOUND[key] = next(filter(None, (_try(block, seed) for seed in range(_NUM_DRAWS))), None)
    return _FOUND[key]


def _settings(module: nn.Module) -> Iterator[tuple[str, object]]:
    for name, value in sorted(vars(module).items()):
        if name not in _NUMBERS and isinstance(value, _SETTINGS):
            yield name, value


def _try(block: FeedForwardBlock, seed: int) -> str | None:
    """Return the reason that one draw of features shows."""
    generator = torch.Generator().manual_seed(seed)
    width = block.num_neurons
    kept = list(range(0, width, 2))
    # Means and deviations differ without neurons whose features are larger.
    scale = 1.0 + 3.0 * (torch.arange(width) % 2)
    rows: dict[nn.Module, Tensor] = {}
    fewer: dict[nn.Module, Tensor] = {}
    scales = {"plain": scale, "halves": scale.repeat(2), "pairs": scale.repeat_interleave(2)}
    for up, layout in block.ups():
        rows[up] = torch.randn(len(scales[layout]), generator=generator) * scales[layout]
        fewer[up] = rows[up][rows_of_layout(layout, kept, width)]
    try:
        expected = _features(block, rows)
    except Exception:  # A forward pass of another kind shows nothing.
        return None
    if expected is None or expected.shape[-1] != width or not expected.isfinite().all():
        return None
    try:
        actual = _features(block, fewer)
    except Exception as error:  # Classes that need all neurons raise errors of all kinds.
        return f"its forward pass fails with fewer neurons ({type(error).__name__}: {error})"
    if actual is None or actual.shape[-1] != len(kept) or not torch.allclose(expected[..., kept], actual, atol=1e-5):
        return "the features of a neuron depend on the other neurons, as behind a norm or a cutoff by their mean"
    return None


@torch.inference_mode()
def _features(block: FeedForwardBlock, rows: Mapping[nn.Module, Tensor]) -> Tensor | None:
    """Return the input of the down projection, ``[1, 3, num_neurons]``, for given outputs of the up projections."""
    hidden_size = num_inputs(next(iter(rows)))
    down = _Down(hidden_size)
    replaced: dict[nn.Module, nn.Module] = {up: _Up(values) for up, values in rows.items()}
    replaced[block.output_projection] = down
    num_others = _num_parameters(block.module) - sum(map(_num_parameters, replaced))
    required = required_arguments(type(block.module).forward) - {"self"}
    if not required or num_others > _MOST_OTHERS:
        return None
    try:
        # They are masks, residuals and alike.
        others = [None] * (len(required) - 1)
        _without_values(block.module, replaced)(torch.zeros(1, 3, hidden_size), *others)
    except Exception:
        # What follows the down projection is not tried.
        if down.features is None:
            raise
    return down.features


class _Up(nn.Module):
    """The stand-in of an up projection, which returns given rows at each position."""

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        # Some classes read the type of the weight.
        self.rows, self.weight, self.bias = rows, torch.zeros(0), None

    def forward(self, inputs: Tensor) -> Tensor:
        return self.rows.expand(*inputs.shape[:-1], -1).clone()


class _Down(nn.Module):
    """The stand-in of a down projection, which keeps its input."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.hidden_size, self.weight, self.bias = hidden_size, torch.zeros(0), None
        self.features: Tensor | None = None

    def forward(self, inputs: Tensor) -> Tensor:
        self.features = inputs
        return inputs.new_zeros(*inputs.shape[:-1], self.hidden_size)


def _num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _without_values(module: Any, replaced: Mapping[nn.Module, nn.Module]) -> Any:
    """Copy a module in evaluation mode, without hooks, with zeros in place of values and other modules for some."""
    if module in replaced:
        return replaced[module]
    copied: Any = object.__new__(type(module))
    # Hooks, and the forward pass with which libraries replace that of the class, belong to the module itself.
    copied.__dict__ |= {
        name: type(value)() if name.endswith("_hooks") or "_hooks_" in name else value
        for name, value in vars(module).items()
        if name not in ("forward", "_old_forward", "_hf_hook")
    }
    copied.__dict__ |= {
        "training": False,
        "_parameters": {name: _zeros(value) for name, value in module._parameters.items()},
        "_buffers": {name: _zeros(value) for name, value in module._buffers.items()},
        "_modules": {
            name: None if child is None else _without_values(child, replaced) for name, child in module._modules.items()
        },
    }
    return copied


def _zeros(tensor: Tensor | None) -> Tensor | None:
    """Return zeros of a shape that take no memory."""
    if tensor is None:
        return None
    dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
    return torch.zeros((), dtype=dtype).expand(tensor.shape)
