"""Experts of one layer: feed-forward networks whose weights are parameters of three dimensions.

A router chooses some experts for each token. All experts of a layer have the same neurons, which they lose together:
experts of different widths would not fit into one parameter. The features between the up and the down projection are
the output of no layer, so hooks are put on the activation.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from .edits import Edit, Features, Handle, SetAttribute, TakeEntries
from .feed_forward_specs import FeedForwardSpec, UpLayout, rows_of_layout
from .subclasses import ConfigView

__all__ = [
    "GROUP_FACTOR",
    "ExpertsSpec",
    "count_experts_per_token",
    "count_neurons",
    "expert_size",
    "find_experts_spec",
    "hook_activation",
    "plan_experts_cut",
]

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
        """The dimension of the down projection with an entry for each neuron."""
        return 1 if self.is_transposed else 2

    @property
    def output_dim(self) -> int:
        """The dimension of the up projections with an entry for each output."""
        return 2 if self.is_transposed else 1


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
    down = parameters.get(_DOWN)
    if ups is None or down is None or not _has_three_dims(down) or _activation(module) is None:
        return None
    up: Any = parameters[ups[0]]
    is_fused = ups == _UPS[0]
    layout: UpLayout = "plain" if not is_fused else "halves" if getattr(module, "is_concatenated", True) else "pairs"
    # Shapes cannot tell for layers that are not fused; transformers has written the answer into the module.
    is_transposed = (
        (up.shape[1], up.shape[2]) == (down.shape[2], 2 * down.shape[1])
        if is_fused
        else bool(getattr(module, "is_transposed", False))
    )
    spec = ExpertsSpec(tuple((name, layout) for name in ups), _DOWN, is_transposed)
    width, hidden = down.shape[spec.input_dim], down.shape[3 - spec.input_dim]
    shape = (2 * width if is_fused else width, hidden)
    found = {(parameters[name].shape[spec.output_dim], parameters[name].shape[3 - spec.output_dim]) for name in ups}  # type: ignore[union-attr]
    return spec if found == {shape} else None


def count_neurons(module: nn.Module, spec: ExpertsSpec) -> int:
    """Return the number of neurons of each expert."""
    down: Any = getattr(module, spec.down)
    return int(down.shape[spec.input_dim])


def count_experts_per_token(module: nn.Module, spec: ExpertsSpec) -> int:
    """Return the number of experts that compute each token: those that the router chooses, or all as in Llama 4."""
    config = getattr(module, "config", None)
    numbers = (getattr(config, name, None) for name in _PER_TOKEN)
    return next((number for number in numbers if type(number) is int), len(getattr(module, spec.down)))


def expert_size(module: nn.Module, spec: ExpertsSpec) -> tuple[int, int]:
    """Return the multiply-accumulates of a neuron for one token in one expert, and its parameters in all experts."""
    down: Any = getattr(module, spec.down)
    hidden = down.shape[3 - spec.input_dim]
    num_rows = sum(1 if layout == "plain" else 2 for _, layout in spec.ups)
    num_biases = sum(1 if layout == "plain" else 2 for _, layout in _biases(module, spec))
    return hidden * (num_rows + 1), len(down) * (hidden * (num_rows + 1) + num_biases)


def plan_experts_cut(module: nn.Module, spec: ExpertsSpec, positions: Sequence[int], width: int) -> list[Edit]:
    """Plan to keep some neurons of all experts.

    Without any neuron the experts give their biases, weighted by the router, and all parameters keep a gradient. The
    grouped products of matrices refuse a width of zero; the batched ones, which replace them there, gather weights of
    size zero.

    Args:
        module: The module of the experts.
        spec: The layout of its parameters.
        positions: Positions of the kept neurons among the present ones.
        width: Number of present neurons.
    """
    dims = dict.fromkeys(spec.ups, spec.output_dim) | dict.fromkeys(_biases(module, spec), 1)
    edits: list[Edit] = [
        TakeEntries(module, name, Features(rows_of_layout(layout, positions, width), 1), dim)
        for (name, layout), dim in dims.items()
    ]
    edits.append(TakeEntries(module, spec.down, Features(positions, 1), spec.input_dim))
    if not positions and hasattr(getattr(module, "config", None), "_experts_implementation"):
        view = ConfigView(module.config, {"_experts_implementation": "batched_mm"})
        edits.append(SetAttribute(module, "config", view))
    return edits


def hook_activation(module: nn.Module, function: Callable[[Tensor], Tensor | None]) -> Handle:
    """Call a function on the features of experts, ``[..., num_neurons]``, and use its result if it is not None.

    The features are those after the activation: the product with the other half comes before or after it and, like a
    factor of each feature, is taken element by element.

    Args:
        module: The module of the experts.
        function: Function of the features, which must be a copy's own if the model is copied: a module, for example.
    """
    name = _activation(module)
    assert name is not None
    point = getattr(module, name)
    if not isinstance(point, nn.Module):
        # An attribute of the module itself precedes the method of its class.
        point = _Calling(point, is_method=name not in module.__dict__)
        module.__dict__[name] = point
    return _ActivationHandle(module, name, point, point.register_forward_hook(partial(_replace_output, function)))


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


def _biases(module: nn.Module, spec: ExpertsSpec) -> Iterator[tuple[str, UpLayout]]:
    """Yield the names and layouts of the biases of the up projections, ``[num_experts, outputs]``."""
    for name, layout in spec.ups:
        if module._parameters.get(f"{name}_bias") is not None:
            yield f"{name}_bias", layout


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
