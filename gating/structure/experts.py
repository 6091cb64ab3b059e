"""Experts of one layer: feed-forward networks whose weights are parameters of three dimensions.

A router chooses some experts for each token. All experts of a layer have the same neurons, which they lose together:
experts of different widths would not fit into one parameter. The features between the up and the down projection are
the output of no layer, so hooks are put on the activation.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from .edits import Edit, Features, Handle, SetAttribute, TakeEntries
from .feed_forward_specs import FeedForwardSpec, UpLayout, rows_of_layout
from .subclasses import ConfigView

__all__ = ["GROUP_FACTOR", "ExpertsSpec", "find_experts_spec", "hook_activation"]

# torch.nn.functional.grouped_mm needs strides of 16 bytes: 8 numbers of half precision.
GROUP_FACTOR = 8

_UPS: tuple[tuple[str, ...], ...] = (("gate_up_proj",), ("gate_proj", "up_proj"), ("up_proj",))
_DOWN = "down_proj"
_PER_TOKEN = ("num_experts_per_tok", "moe_topk", "moe_top_k", "top_k_experts", "moe_k")


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

    def num_neurons(self, experts: nn.Module) -> int:
        """Return the number of neurons of each expert in a module."""
        return _shape(experts, self.down)[self.input_dim]

    def hidden_size(self, experts: nn.Module) -> int:
        """Return the width of the output of experts."""
        return _shape(experts, self.down)[self.output_dim]

    def experts_per_token(self, experts: nn.Module) -> int:
        """Return the number of experts that compute each token: those that the router chooses, or all as in Llama 4."""
        config = getattr(experts, "config", None)
        numbers = (getattr(config, name, None) for name in _PER_TOKEN)
        return next((number for number in numbers if type(number) is int), _shape(experts, self.down)[0])

    def neuron_size(self, experts: nn.Module) -> tuple[int, int]:
        """Return the multiply-accumulates of a neuron for one token, and its number of parameters in all experts."""
        num_rows = sum(1 if layout == "plain" else 2 for _, layout in self.ups)
        num_biases = sum(1 if layout == "plain" else 2 for _, layout in self.biases(experts))
        weights = self.hidden_size(experts) * (num_rows + 1)
        return self.experts_per_token(experts) * weights, _shape(experts, self.down)[0] * (weights + num_biases)

    def biases(self, experts: nn.Module) -> list[tuple[str, UpLayout]]:
        """Return the names and layouts of the biases of the up projections, ``[num_experts, outputs]``."""
        pairs = [(f"{name}_bias", layout) for name, layout in self.ups]
        return [pair for pair in pairs if experts._parameters.get(pair[0]) is not None]

    def plan_cuts(self, experts: nn.Module, positions: Sequence[int], width: int) -> list[Edit]:
        """Plan to keep the neurons at some of ``width`` positions.

        Without any neuron the experts give their biases, weighted by the router, and all parameters keep a gradient.
        The grouped products of matrices refuse a width of zero; the batched ones, which replace them there, gather
        weights of size zero.
        """
        dims = dict.fromkeys(self.ups, self.output_dim) | dict.fromkeys(self.biases(experts), 1)
        edits: list[Edit] = [
            TakeEntries(experts, name, Features(rows_of_layout(layout, positions, width), 1), dim)
            for (name, layout), dim in dims.items()
        ]
        edits.append(TakeEntries(experts, self.down, Features(positions, 1), self.input_dim))
        if not positions and hasattr(getattr(experts, "config", None), "_experts_implementation"):
            view = ConfigView(experts.config, {"_experts_implementation": "batched_mm"})
            edits.append(SetAttribute(experts, "config", view))
        return edits


def find_experts_spec(module: nn.Module) -> ExpertsSpec | None:
    """Return the layout of the experts in a module, from the names and shapes of its parameters.

    Source: the classes with ``use_experts_implementation`` in transformers 5.24, and those of Llama 4, LongCat and
    Inkling.

    Example:
        >>> find_experts_spec(nn.Linear(2, 2)) is None
        True
    """
    parameters = module._parameters
    ups = next((names for names in _UPS if all(_has_three_dims(parameters.get(name)) for name in names)), None)
    if ups is None or not _has_three_dims(parameters.get(_DOWN)) or _activation(module) is None:
        return None
    (_, *up), (_, *down) = _shape(module, ups[0]), _shape(module, _DOWN)
    is_fused = ups == _UPS[0]
    layout: UpLayout = "plain" if not is_fused else "halves" if getattr(module, "is_concatenated", True) else "pairs"
    # Shapes cannot tell for layers that are not fused; transformers has written the answer into the module.
    is_transposed = up == [down[1], 2 * down[0]] if is_fused else bool(getattr(module, "is_transposed", False))
    spec = ExpertsSpec(tuple((name, layout) for name in ups), _DOWN, is_transposed)
    rows, hidden = spec.num_neurons(module) * (2 if is_fused else 1), spec.hidden_size(module)
    expected = [hidden, rows] if is_transposed else [rows, hidden]
    return spec if all(_shape(module, name)[1:] == expected for name in ups) else None


def hook_activation(experts: nn.Module, function: Callable[[Tensor], Tensor | None]) -> Handle:
    """Call a function on the features of experts, ``[..., num_neurons]``; a result other than None replaces them.

    The features are the output of the activation: the product with the other half, before it or after, is taken
    element by element, as is a factor of each feature.

    Args:
        experts: The module of the experts.
        function: For models that are copied with their hooks, a module.
    """
    name = _activation(experts)
    assert name is not None
    point = getattr(experts, name)
    if not isinstance(point, nn.Module):
        # An attribute of the module itself precedes the method of its class.
        point = _Calling(point, is_method=name not in experts.__dict__)
        experts.__dict__[name] = point
    return _ActivationHandle(experts, name, point, point.register_forward_hook(partial(_replace_output, function)))


class _Calling(nn.Module):
    """A function or method as a module, so that hooks can be put on it."""

    def __init__(self, function: Callable[..., Tensor], *, is_method: bool) -> None:
        super().__init__()
        self.function = function
        self.is_method = is_method

    def forward(self, *args: Tensor) -> Tensor:
        return self.function(*args)


@dataclass(frozen=True)
class _ActivationHandle:
    module: nn.Module
    name: str
    point: nn.Module
    hook: Handle

    def remove(self) -> None:
        """Remove the hook, and with the last one the module that only hooks needed."""
        self.hook.remove()
        if isinstance(self.point, _Calling) and not self.point._forward_hooks:
            del self.module.__dict__[self.name]
            if not self.point.is_method:
                self.module.__dict__[self.name] = self.point.function


def _replace_output(
    function: Callable[[Tensor], Tensor | None], _module: nn.Module, _inputs: object, output: Tensor
) -> Tensor | None:
    return function(output)


def _activation(module: nn.Module) -> str | None:
    """Return the name of the function with the features as output, or None.

    A class with an ``_apply_gate`` of its own calls it in each implementation, and its activation in general not as the
    last step. The others inherit that of transformers, which only some implementations call.
    """
    gate = getattr(type(module), "_apply_gate", None)
    if gate is not None and gate.__module__ != "transformers.integrations.moe":
        return "_apply_gate"
    return "act_fn" if callable(getattr(module, "act_fn", None)) else None


def _has_three_dims(parameter: Tensor | None) -> bool:
    return parameter is not None and parameter.dim() == 3


def _shape(module: nn.Module, name: str) -> list[int]:
    parameter = module._parameters[name]
    assert parameter is not None
    return list(parameter.shape)
